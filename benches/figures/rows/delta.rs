//! Deltas of a job that has written some of its memory once, against one read of these pages.

use anyhow::Result;
use cr_bench::commands::{StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::baseline;
use crate::report::Row;

const WRITTEN_MIB: u64 = 64;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let mib = setting.args.mib;
    let store = StoreDir::new(setting.tmpfs.path());
    let options = strings(&[&"--mib", &mib, &"--rate", &0, &"--once-mib", &WRITTEN_MIB]);
    let under = strings(&[&"--store", &store.arg(), &"--interval", &"1h"]);
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &options, Some(&under))?;
    checkpoint(guest.pid, &store, &[])?;

    // The writer goes through its memory in order and round.
    let (start, mut written) = (guest.memory_start()?, 0);
    let mut write = |guest: &mut Guest| -> Result<u64> {
        guest.write_once()?;
        let at = start + ((written % mib) << 20);
        written += WRITTEN_MIB;
        Ok(at)
    };
    let mut buffer = baseline::warm_buffer((WRITTEN_MIB << 20) as usize)?;
    let (mut read, mut frozen, mut stored) = (Samples::default(), Samples::default(), Samples::default());
    for repetition in 0..=setting.args.repetitions {
        // Both find the pages as the job has just left them.
        let at = write(&mut guest)?;
        let one_read = baseline::read_remote(guest.pid, at, &mut buffer)?;
        checkpoint(guest.pid, &store, &[])?;
        write(&mut guest)?;
        let taken = checkpoint(guest.pid, &store, &[])?;
        if repetition > 0 {
            read.0.push(one_read);
            frozen.0.push(number(&taken, "frozen_ms")?);
            stored.0.push(number(&taken, "stored_bytes")? / f64::from(1 << 20));
        }
    }
    guest.kill()?;
    Ok(vec![
        Row {
            name: format!("delta with {WRITTEN_MIB} MiB written of {mib}: stored bytes"),
            figures: stored,
            bound: 1.02 * WRITTEN_MIB as f64 + 64.0 / 1024.0,
            unit: "MiB",
            behind: Vec::new(),
        },
        Row {
            name: "the same: frozen time".to_owned(),
            figures: frozen,
            bound: 1.5 * read.median() + 3.0,
            unit: "ms",
            behind: vec![("process_vm_readv ms".to_owned(), read)],
        },
    ])
}
