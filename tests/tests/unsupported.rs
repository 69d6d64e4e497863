//! What cannot be restored yet is refused before anything is frozen: by name, with its place, and the job goes on unharmed.

use cr_tests::{Job, JobOptions, cr, guest_names, note_skip, run};

/// The object and words of the refusal that say what it is (any of them).
const KINDS: &[(&str, &[&str])] = &[
    ("epoll-spent", &["one-shot watch"]),
    ("inotify-unread", &["has not read yet"]),
    ("inotify-gone", &["whose path cannot be found"]),
    ("fanotify", &["fanotify"]),
    ("namespace", &["namespace"]),
    ("outside-socket", &["(unsupported), outside of the job"]),
    ("io_uring", &["io_uring"]),
    ("userfaultfd", &["userfaultfd"]),
    ("userfaultfd-range", &["registered with a userfaultfd"]),
    ("perf", &["perf"]),
    ("bpf", &["bpf"]),
    ("pidfd", &["not of the job"]),
    ("mqueue", &["holds 1 messages"]),
    ("mqueue-notify", &["mq_notify"]),
    ("fifo-unread", &["nobody has open for reading"]),
    ("owner", &["sends signals to process"]),
    ("device", &["device", "kmsg"]),
    ("tun", &["device", "tun"]),
    ("pty", &["which pid", "has open"]),
    ("proc-file", &["not of the job"]),
    ("sysv-huge", &["huge"]),
    ("device-mapping", &["perf", "device"]),
    ("secret-mapping", &["secret"]),
    ("outside-pipe", &["pipe"]),
];

#[test]
fn all_are_refused_by_name() {
    let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(guest_names("unsupported"), names, "the guest's list and the test's");
    let problems: Vec<String> = KINDS.iter().filter_map(|(name, words)| refusal(name, words).err()).collect();
    assert!(problems.is_empty(), "{} of {}:\n{}", problems.len(), KINDS.len(), problems.join("\n"));
}

fn refusal(name: &str, words: &[&str]) -> Result<(), String> {
    let options = JobOptions { args: vec![name.into()], piped_stdin: name == "outside-pipe", ..JobOptions::default() };
    let mut job = Job::start_with("unsupported", &options);
    if let Some(why) = job.read_link(&format!("skipped.{name}")) {
        note_skip(&format!("unsupported: {name}: {why}"));
        return Ok(());
    }
    let place = job.read_link("say.where").unwrap_or_default();
    let checkpoint = run(&mut job.checkpoint_command());
    let check = run(cr().args(["check", &job.pid().to_string(), "--json"]));
    let said = checkpoint.said().to_lowercase();
    let mut wrong = Vec::new();
    if checkpoint.code != Some(120) {
        wrong.push("expected exit code 120".to_owned());
    }
    if !words.iter().any(|word| said.contains(word)) {
        wrong.push(format!("it does not say {words:?}"));
    }
    if !said.contains(&place) {
        wrong.push(format!("it does not say {place:?}"));
    }
    let refusals = serde_json::from_str::<serde_json::Value>(&check.stdout).unwrap_or_default();
    let refusals = refusals["refusals"].as_array().cloned().unwrap_or_default();
    if check.code != Some(120) || refusals.is_empty() {
        wrong.push(format!("cr check PID does not refuse it\n{check}"));
    }
    for refusal in &refusals {
        if ["why", "todo", "where"].iter().any(|field| refusal[field].as_str().unwrap_or_default().is_empty()) {
            wrong.push(format!("a refusal without where, why or todo: {refusal}"));
        }
    }
    if job.store().join("00000001.cr").exists() {
        wrong.push("there is an image in the store".to_owned());
    }
    job.advance(5);
    job.finish();
    if wrong.is_empty() { Ok(()) } else { Err(format!("{name}: {}\n{checkpoint}", wrong.join("; "))) }
}
