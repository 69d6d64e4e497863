//! Chains that a `cr` of the past wrote are still read, and say what they said. See `tests/golden`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cr_tests::{Checkpoint, Job, cr, run};
use serde_json::{Map, Value};

/// By number, what `cr show --json` said when the chain was made.
const SHOWN: &str = "shown.json";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// What `cr show --json` says of a checkpoint, with files named without their directory.
fn show(store: &Path, id: u64) -> Value {
    let mut shown = run(cr().args(["show", "--json", "--id", &id.to_string(), "--store"]).arg(store)).json();
    for image in shown["images"].as_array_mut().expect("the files of the chain") {
        let file = PathBuf::from(image["file"].as_str().expect("a path"));
        image["file"] = file.file_name().and_then(|name| name.to_str()).into();
    }
    shown
}

/// Whether all that was said is still said. More may be said by now.
fn expect_said(path: &str, was: &Value, is: &Value) {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            for (name, value) in was {
                let now = is.get(name).unwrap_or_else(|| panic!("{path}.{name} is not shown any more"));
                expect_said(&format!("{path}.{name}"), value, now);
            }
        }
        (Value::Array(was), Value::Array(is)) => {
            assert_eq!(was.len(), is.len(), "{path}");
            was.iter().zip(is).enumerate().for_each(|(at, (was, is))| expect_said(&format!("{path}[{at}]"), was, is));
        }
        _ => assert_eq!(was, is, "{path}"),
    }
}

#[test]
fn every_golden_chain_is_read() {
    let mut found = 0;
    for entry in fs::read_dir(golden()).expect("tests/golden").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        let Some(version) = name.strip_suffix(".tar.xz") else { continue };
        found += 1;
        let folder = tempfile::tempdir().expect("a folder");
        let unpacked = Command::new("tar").arg("-xJf").arg(entry.path()).arg("-C").arg(folder.path()).status();
        assert!(unpacked.expect("tar, and xz").success(), "{name} cannot be unpacked");
        let said = fs::read(folder.path().join(SHOWN)).expect("what was said of it");
        let said: Map<String, Value> = serde_json::from_slice(&said).expect("JSON");
        let report = run(cr().args(["verify", "--json", "--store"]).arg(folder.path())).json();
        assert!(report["ok"] == true && report["checkpoints"] == said.len(), "{name}: {report}");
        let listed = run(cr().args(["list", "--json", "--store"]).arg(folder.path())).json();
        assert_eq!(listed.as_array().map(Vec::len), Some(said.len()), "{name}");
        for (id, was) in &said {
            expect_said(
                &format!("{version}, checkpoint {id}: "),
                was,
                &show(folder.path(), id.parse().expect("a number")),
            );
        }
        let core = folder.path().join("core");
        let export = run(cr().args(["export", "--json", "--store"]).arg(folder.path()).arg("--core").arg(&core)).json();
        assert!(export["memory_bytes"].as_u64() > Some(0), "{export}");
    }
    assert!(found > 0, "there is no golden chain");
}

/// Makes `$GOLDEN.tar.xz`.
#[test]
#[ignore = "makes a golden chain, which is done once for each version of the format"]
fn make() {
    let name = PathBuf::from(std::env::var_os("GOLDEN").expect("GOLDEN=format-N"));
    let target = golden().join(name.file_name().expect("a name")).with_extension("tar.xz");
    assert!(!target.exists(), "{} is there, and never made anew", target.display());
    let mut job = Job::start_resident("golden", &[]);
    let range = job.read_link("say.secret").expect("the guest says where it is");
    job.checkpoint();
    fs::write(job.dir().join("go.1"), "").expect("to tell the guest");
    job.advance(3);
    job.checkpoint();
    for _ in 0..2 {
        job.advance(2);
        let taken = run(job.checkpoint_command().args(["--skip-memory", &range]));
        assert!(Checkpoint::parse(&taken.json()).is_delta, "{taken}");
    }
    job.kill();
    let ids: Vec<u64> = job.list().iter().map(|checkpoint| checkpoint.id).collect();
    let said: Map<String, Value> = ids.iter().map(|id| (id.to_string(), show(&job.store(), *id))).collect();
    let said = serde_json::to_string_pretty(&said).expect("JSON") + "\n";
    fs::write(job.store().join(SHOWN), said).expect("written");
    let names = ids.iter().map(|id| format!("{id:08}.cr")).chain(["cr-store.json".to_owned(), SHOWN.to_owned()]);
    let packed = Command::new("tar").arg("-cJf").arg(target).arg("-C").arg(job.store()).args(names).status();
    assert!(packed.expect("tar, and xz").success(), "the store cannot be packed");
}
