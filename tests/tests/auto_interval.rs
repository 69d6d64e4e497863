//! `--interval auto`: checkpoints come when their measured cost says so. And full or delta, by the sizes that were measured.

use std::fs;
use std::time::Duration;

use cr_tests::{Job, JobOptions, wait_until};
use serde_json::Value;

/// The lines of a job's journal about checkpoints.
fn journal(job: &Job) -> Vec<Value> {
    let text = fs::read_to_string(job.store().join("log.jsonl")).unwrap_or_default();
    // The last line may be half written.
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line.get("compaction").is_none()).collect()
}

fn wait_for_lines(job: &Job, count: usize) -> Vec<Value> {
    wait_until(&format!("there were {count} attempts"), || journal(job).len() >= count);
    let lines = journal(job);
    assert!(lines.iter().all(|line| line["checkpoint"].is_object()), "an attempt failed: {lines:#?}");
    lines
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// When the job was frozen for the checkpoint of a line: seconds since midnight.
fn taken_at(line: &Value) -> f64 {
    let text = line["checkpoint"]["taken_at"].as_str().expect("a time");
    let time = text.split('T').nth(1).expect("a time of day").trim_end_matches('Z');
    time.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
}

fn start(interval: &str, controller_args: &[&str], args: &[&str]) -> Job {
    let strings = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let options = JobOptions {
        args: strings(args),
        controller: Some(interval.into()),
        controller_args: strings(controller_args),
        ..JobOptions::default()
    };
    Job::start_with("writer", &options)
}

/// Daly's higher-order estimate, written down a second time.
fn daly_ms(cost: f64, mtbf: f64) -> f64 {
    let x = cost / (2.0 * mtbf);
    (2.0 * cost * mtbf).sqrt() * (1.0 + x.sqrt() / 3.0 + x / 9.0) - cost
}

#[test]
fn the_interval_is_what_the_journals_numbers_make_it() {
    const MTBF_MS: f64 = 300_000.0;
    let mut job = start("auto", &["--mtbf", "5min"], &["--mib", "32", "--rate", "20"]);
    wait_for_lines(&job, 3);
    // One that is asked for counts like any other.
    job.checkpoint();
    let lines = wait_for_lines(&job, 7);
    let costs: Vec<f64> = lines.iter().map(|line| number(&line["checkpoint"]["frozen_ms"])).collect();
    for (n, line) in lines.iter().enumerate() {
        let auto = &line["auto"];
        let (interval, cost) = (number(&line["interval_ms"]), number(&auto["cost_ms"]));
        assert!((number(&auto["mtbf_ms"]) - MTBF_MS).abs() < 0.5, "{auto}");
        // The first one counts only for as long as it is the only one.
        let counted = if n == 0 { &costs[..1] } else { &costs[1..=n] };
        let mean = counted.iter().sum::<f64>() / counted.len() as f64;
        assert!((number(&auto["frozen_ms"]) - mean).abs() < 0.01, "frozen: {mean}, not {auto}");
        assert!((number(&auto["frozen_ms"]) + number(&auto["faults_ms"]) - cost).abs() < 0.01, "{auto}");
        if n > 0 {
            // 20 MiB/s to 32 MiB: some thousand pages each time, which raise a fault each.
            let (faults, pages) = (number(&auto["faults_ms"]), number(&line["checkpoint"]["dirty_pages"]));
            assert!(faults > pages * 0.000_05 && faults < pages * 0.5, "{faults} ms for about {pages} pages");
        }
        let formula = daly_ms(cost, MTBF_MS);
        assert!((number(&auto["formula_ms"]) - formula).abs() <= 2.0, "{formula} ms, and not {auto}");
        let limited = formula.max(1000.0).max(2.0 * number(&auto["durable_ms"]));
        assert!((interval - limited).abs() <= 2.0, "{limited} ms, and not {interval}: {auto}");
    }
    for pair in lines.windows(2).filter(|pair| pair[1]["trigger"] == "interval") {
        let interval = number(&pair[0]["interval_ms"]) / 1000.0;
        let spacing = (taken_at(&pair[1]) - taken_at(&pair[0])).rem_euclid(86_400.0);
        let total = |line: &Value| number(&line["checkpoint"]["total_ms"]) / 1000.0;
        let (least, most) = (interval - total(&pair[0]) - 0.1, interval + total(&pair[1]) + 1.0);
        assert!((least..most).contains(&spacing), "{spacing} s apart, with an interval of {interval} s: {pair:#?}");
    }
    job.verify();
    job.kill();
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn the_first_one_comes_early_and_costs_move_the_interval() {
    let mut job = start("auto", &["--mtbf", "10s"], &["--mib", "4", "--rate", "1"]);
    let lines = wait_for_lines(&job, 3);
    for line in &lines {
        // With a failure every ten seconds no formula gives a second for a cost of some milliseconds.
        let auto = &line["auto"];
        if number(&auto["formula_ms"]) < 1000.0 && number(&auto["durable_ms"]) < 500.0 {
            assert_eq!((&line["interval_ms"], &auto["bound"]), (&1000.into(), &"lowest".into()), "{line}");
        }
    }
    job.finish();
}

/// The kinds of checkpoints in a journal, a letter each.
fn kinds(lines: &[Value]) -> String {
    let letter = |line: &Value| if line["checkpoint"]["kind"] == "full" { 'F' } else { 'd' };
    lines.iter().map(letter).collect()
}

#[test]
fn a_job_that_rewrites_everything_gets_full_checkpoints() {
    let mut job = start("400ms", &[], &["--mib", "8", "--rate", "200"]);
    let lines = wait_for_lines(&job, 10);
    let taken = kinds(&lines);
    assert!(taken.starts_with("Fddd") && taken[1..].contains('F'), "{taken}: {lines:#?}");
    let longest = taken.split('F').map(str::len).max().unwrap_or_default();
    assert!(longest <= 4, "{longest} deltas in a row: {taken}");
    for (n, line) in lines.iter().enumerate() {
        let says_why = line["full_because"].is_string();
        assert!(says_why == (n > 0 && line["checkpoint"]["kind"] == "full"), "{line}");
        assert!(line["auto"].is_null() && line["interval_ms"] == 400, "{line}");
    }
    job.verify();
    // The chain goes on from the last full one.
    job.kill();
    let chain = job.list();
    let last_full = chain.iter().rposition(|c| !c.is_delta).expect("a full one");
    assert!(last_full > 0, "{chain:#?}");
    job.restore();
    job.advance(3);
    job.finish();
}

#[test]
fn small_deltas_stay_deltas_and_what_was_asked_for_is_not_changed() {
    let mut job = start("300ms", &[], &["--mib", "32", "--rate", "2"]);
    let lines = wait_for_lines(&job, 12);
    assert_eq!(kinds(&lines), format!("F{}", "d".repeat(lines.len() - 1)));
    job.finish();
    let mut job = Job::start_resident("writer", &["--mib", "4", "--rate", "200"]);
    for n in 0..8 {
        std::thread::sleep(Duration::from_millis(300));
        let taken = job.checkpoint();
        assert_eq!(taken.is_delta, n > 0, "number {n} was asked for");
    }
    job.finish();
}
