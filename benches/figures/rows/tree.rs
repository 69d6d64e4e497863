//! A tree of many processes, against one process, and against forking as many.

use anyhow::{Context as _, Result};
use cr_bench::commands::{StoreDir, checkpoint, number, restore};
use cr_bench::guest::{Guest, fork_and_touch};
use cr_bench::sample::{Samples, timed};
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const PROCESSES: u64 = 100;
const MIB: u64 = 10;
const WRITTEN_MIB: u64 = 1;
const FROZEN: f64 = 10.0;
const RESTORE: f64 = 3.0;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    Ok(vec![delta(setting)?, whole(setting)?])
}

fn options(processes: u64) -> Vec<String> {
    strings(&[&"--processes", &processes, &"--mib", &MIB, &"--once-mib", &WRITTEN_MIB])
}

/// Deltas of both, in turn, each under a resident controller of its own.
fn delta(setting: &Setting) -> Result<Row> {
    let start = |processes: u64, folder: &str| -> Result<(Guest, StoreDir)> {
        let folder = setting.tmpfs.path().join(folder);
        std::fs::create_dir(&folder)?;
        let store = StoreDir::new(&folder);
        let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
        let guest = Guest::start(setting.tmpfs.path(), "grove", &options(processes), Some(&under))?;
        checkpoint(guest.pid, &store, &[])?;
        Ok((guest, store))
    };
    let (mut tree, tree_store) = start(PROCESSES, "tree")?;
    let (mut one, one_store) = start(1, "one")?;
    let frozen = |guest: &mut Guest, store: &StoreDir| -> Result<f64> {
        guest.write_once()?;
        number(&checkpoint(guest.pid, store, &[])?, "frozen_ms")
    };
    let (mut of_tree, mut of_one) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (tree_ms, one_ms) = (frozen(&mut tree, &tree_store)?, frozen(&mut one, &one_store)?);
        if repetition > 0 {
            of_tree.0.push(tree_ms);
            of_one.0.push(one_ms);
        }
    }
    tree.kill()?;
    one.kill()?;
    Ok(Row {
        name: format!(
            "delta of {PROCESSES} processes of {MIB} MiB, {WRITTEN_MIB} MiB written in each: frozen time over that of one"
        ),
        figures: of_tree.over(&of_one),
        bound: FROZEN,
        unit: "×",
        behind: vec![("the tree ms".to_owned(), of_tree), ("one ms".to_owned(), of_one)],
    })
}

/// Restores of the tree from the page cache, and as many forks whose memory is touched, in turn.
fn whole(setting: &Setting) -> Result<Row> {
    let store = StoreDir::new(setting.tmpfs.path());
    let mut guest = Guest::start(setting.tmpfs.path(), "grove", &options(PROCESSES), None)?;
    checkpoint(guest.pid, &store, &[]).context("the tree's full checkpoint")?;
    guest.kill()?;
    let (mut forks, mut restores) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let forked = fork_and_touch(setting.tmpfs.path(), &options(PROCESSES))?;
        let (took, pid) = timed(|| restore(&store, &[]))?;
        guest.pid = pid;
        guest.kill()?;
        if repetition > 0 {
            forks.0.push(forked);
            restores.0.push(took);
        }
    }
    Ok(Row {
        name: format!("restore of {PROCESSES} processes of {MIB} MiB: over forking as many that touch as much"),
        figures: restores.over(&forks),
        bound: RESTORE,
        unit: "×",
        behind: vec![("cr ms".to_owned(), restores), ("forks ms".to_owned(), forks)],
    })
}
