//! Connections on which nothing happens: they cost a frozen job next to nothing.

use anyhow::{Context as _, Result};
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;
use cr_tests::Network;

use crate::Setting;
use crate::report::Row;

const CONNECTIONS: u64 = 1000;
const FROZEN: f64 = 1.3;

/// Deltas of a job with that many connections, and of one with none, in turn, each under a resident controller of its own.
pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let _network = Network::own().context("a network of one's own")?;
    let mut server = Guest::start(setting.tmpfs.path(), "strangers", &strings(&[&"--serve", &1]), None)?;
    let port = server.says("port")?;
    let start = |connections: u64, folder: &str| -> Result<(Guest, StoreDir)> {
        let folder = setting.tmpfs.path().join(folder);
        std::fs::create_dir(&folder)?;
        let store = StoreDir::new(&folder);
        let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
        let options = strings(&[&"--connect", &port, &"--connections", &connections]);
        let guest = Guest::start(setting.tmpfs.path(), "strangers", &options, Some(&under))?;
        checkpoint(guest.pid, &store, &[])?;
        Ok((guest, store))
    };
    let (mut with, with_store) = start(CONNECTIONS, "with")?;
    let (mut without, without_store) = start(0, "without")?;
    let frozen = |guest: &Guest, store: &StoreDir| number(&checkpoint(guest.pid, store, &[])?, "frozen_ms");
    let (mut of_with, mut of_without) = (Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        let (with_ms, without_ms) = (frozen(&with, &with_store)?, frozen(&without, &without_store)?);
        if repetition > 0 {
            of_with.0.push(with_ms);
            of_without.0.push(without_ms);
        }
    }
    with.kill()?;
    without.kill()?;
    server.kill()?;
    Ok(vec![Row {
        name: format!("frozen time of a delta, nothing written: {CONNECTIONS} idle connections with somebody outside"),
        figures: of_with.over(&of_without),
        bound: FROZEN,
        unit: "×",
        behind: vec![("with ms".to_owned(), of_with), ("without ms".to_owned(), of_without)],
    }])
}
