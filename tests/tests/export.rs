//! `cr export --core`: what a debugger sees in the core file is what the job was.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cr_tests::{Finished, Job, guest, install, run, skip};

/// A job with two threads and a child, its checkpoint, and that it runs no more.
fn killed_job() -> (Job, String) {
    let mut job = Job::start_resident("export", &[]);
    job.checkpoint();
    job.advance(3);
    job.checkpoint();
    let child = job.read_link("say.child").expect("the child's pid");
    job.kill();
    (job, child)
}

fn export(job: &Job, core: &Path, args: &[&str]) -> Finished {
    run(job.cr("export").arg("--core").arg(core).args(args))
}

/// What gdb says to these commands.
fn gdb(program: &Path, core: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off"]);
    gdb.args(commands.iter().flat_map(|command| ["-ex", command])).arg(program).arg(core);
    let finished = run(&mut gdb);
    assert!(finished.code == Some(0), "{finished}");
    finished.said()
}

/// The values of expressions, as gdb prints them in hexadecimal; empty where it cannot read one.
fn values(program: &Path, core: &Path, expressions: &[&str]) -> Vec<String> {
    let commands: Vec<String> = expressions.iter().map(|expression| format!("print/x {expression}")).collect();
    let said: Vec<String> = commands.iter().map(|command| gdb(program, core, &[command.as_str()])).collect();
    said.iter()
        .map(|said| said.lines().find_map(|line| line.strip_prefix("$1 = ")).unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_debugger_sees_stacks_threads_and_memory() {
    if !install("gdb", &["gdb"]) {
        skip!("no gdb");
    }
    let (mut job, child) = killed_job();
    let program = guest("export");
    let core = job.folder().join("core");
    let exported = export(&job, &core, &["--json"]).json();
    assert!(exported["pid"] == job.pid() && exported["threads"] == 2 && exported["id"] == 2, "{exported}");
    assert_eq!(exported["executable"], program.to_string_lossy().as_ref());
    let meta = fs::metadata(&core).expect("the core file");
    assert_eq!((meta.permissions().mode() & 0o7777, exported["file_bytes"].as_u64()), (0o600, Some(meta.len())));

    let said = gdb(&program, &core, &["bt", "info threads", "thread apply all bt"]);
    for word in ["inner_function", "outer_function", "in main", "in_the_thread"] {
        assert!(said.contains(word), "no {word} in\n{said}");
    }
    // Of the extended state, gdb warns where it does not know all features of the CPU; of files that it cannot find it must not.
    assert!(said.contains("* 1") && said.contains("  2") && !said.contains("Can't open file"), "{said}");

    // Of the heap, every other page was written; what is between reads as zero.
    let page = 4096 / 8;
    let fourth = |name: &str| format!("((unsigned long *){name})[{}]", 4 * page);
    let fifth = |name: &str| format!("((unsigned long *){name})[{}]", 5 * page);
    let (heap, shared, untouched, hidden) =
        ("*(long *)&heap", "*(long *)&shared", "*(long *)&untouched", "*(long *)&hidden");
    let expressions = [
        "*(long *)&answer".to_owned(),
        fourth(&format!("({heap})")),
        fifth(&format!("({heap})")),
        fourth(&format!("({shared})")),
        fifth(&format!("({shared})")),
        fourth(&format!("({untouched})")),
        fourth(&format!("({hidden})")),
        "*(char *)&constant".to_owned(),
    ];
    let expressions: Vec<&str> = expressions.iter().map(String::as_str).collect();
    let seen = values(&program, &core, &expressions);
    let expected = ["0x2a", "0x1111000000000004", "0x0", "0x2222000000000004", "0x0", "0x0", "0x0", "0x74"];
    assert_eq!(seen, expected, "{expressions:?}");

    // What is not in the file gdb shows as zeroes, so whether it is must be seen in the file.
    let bytes = fs::read(&core).expect("the core file");
    let holds = |word: u64| bytes.chunks_exact(8).any(|chunk| chunk == word.to_le_bytes());
    assert!(holds(0x1111_0000_0000_0004) && holds(0x2222_0000_0000_0004), "the memory is not in the core file");
    assert!(!holds(0x3333_0000_0000_0004), "memory that was to be left out of core files is in this one");

    // The child, by its pid.
    let of_child = job.folder().join("core.child");
    let exported = export(&job, &of_child, &["--json", "--pid", &child]).json();
    assert!(exported["pid"].as_i64() == child.parse().ok() && exported["threads"] == 1, "{exported}");
    let said = gdb(&program, &of_child, &["bt"]);
    assert!(said.contains("in_the_child") && said.contains("main"), "{said}");
    assert_eq!(values(&program, &of_child, &["*(long *)&answer", expressions[1]]), ["0x2b", "0x1111000000000004"]);
    // The first checkpoint is another one: it was taken before some steps.
    let older = job.folder().join("core.older");
    assert_eq!(export(&job, &older, &["--json", "--id", "1"]).json()["id"], 1);
    let steps = |core: &Path| {
        let step = &values(&program, core, &["*(long *)&guest_steps"])[0];
        u64::from_str_radix(step.trim_start_matches("0x"), 16).expect("a number of steps")
    };
    assert!(steps(&older) + 3 <= steps(&core), "{} and {} steps", steps(&older), steps(&core));
    job.restore();
    job.finish();
}

/// Much memory of zeroes takes no room.
#[test]
fn sparse() {
    let mut job = Job::start("resident", &["--mib", "256", "--filled", "64", "--work", "0"]);
    job.checkpoint();
    let core = job.folder().join("core");
    let exported = export(&job, &core, &["--json"]).json();
    let meta = fs::metadata(&core).expect("the core file");
    assert!(meta.len() > 256 << 20 && meta.blocks() * 512 < 64 << 20, "{} bytes, {} blocks", meta.len(), meta.blocks());
    assert!(exported["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 4 << 20), "{exported}");
    job.kill();
}

#[test]
fn refused() {
    let (job, _) = killed_job();
    let core = job.folder().join("core");
    fs::write(&core, "precious").expect("a file");
    export(&job, &core, &[]).refuses(124, &["core", "exists already"]);
    assert_eq!(fs::read(&core).expect("the file"), b"precious");
    fs::remove_file(&core).expect("removed");
    export(&job, &core, &["--pid", "1"]).refuses(121, &["no process with pid 1", &job.pid().to_string()]);
    export(&job, &core, &["--id", "9"]).refuses(122, &["holds no checkpoint 9"]);
    export(&job, &job.folder().join("no/core"), &[]).refuses(124, &["no/core"]);
    // A page that is not as it was written, and nothing half is left.
    let image = job.store().join("00000001.cr");
    let mut bytes = fs::read(&image).expect("the image");
    // The pages come first; which of them the newest checkpoint still uses is not known here.
    for page in (4096..bytes.len() / 2).step_by(4096) {
        bytes[page] ^= 1;
    }
    fs::write(&image, bytes).expect("the damaged image");
    export(&job, &core, &[]).refuses(122, &["is damaged"]);
    assert_eq!(leftovers(&job), Vec::<PathBuf>::new());
}

fn leftovers(job: &Job) -> Vec<PathBuf> {
    let files = fs::read_dir(job.folder()).expect("the folder").flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))).collect()
}
