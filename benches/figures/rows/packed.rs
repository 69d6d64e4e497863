//! What compression and encryption add to the time that a job stands still for a delta, and to the whole of it: one process, to which
//! controllers come and go, each with its own store.

use std::process::Command;

use anyhow::{Result, ensure};
use cr_bench::commands::{Attached, StoreDir, checkpoint, number};
use cr_bench::guest::Guest;
use cr_bench::sample::Samples;
use cr_bench::strings;

use crate::Setting;
use crate::report::Row;

const WRITTEN_MIB: u64 = 64;
/// "Without adding to the frozen time", where two measurements differ by some percent.
const BOUND: f64 = 1.05;
/// Deltas of each store and round.
const DELTAS: usize = 4;

pub fn measure(setting: &Setting) -> Result<Vec<Row>> {
    let key = setting.tmpfs.path().join("packed.key");
    let made = Command::new(cr_tests::cr().get_program()).args(["keygen", "--key-file"]).arg(&key).output()?;
    ensure!(made.status.success(), "cr keygen: {}", String::from_utf8_lossy(&made.stderr));
    let sealed = strings(&[&"--key-file", &key.display()]);
    let compressed = |how: &str| strings(&[&"--compress", &how]);
    let ways = [
        ("plain", Vec::new(), Vec::new()),
        ("lz4", compressed("lz4"), Vec::new()),
        ("zstd", compressed("zstd"), Vec::new()),
        ("sealed", sealed.clone(), sealed),
    ];

    let options = strings(&[&"--mib", &setting.args.mib, &"--rate", &0, &"--once-mib", &WRITTEN_MIB]);
    let mut guest = Guest::start(setting.tmpfs.path(), "writer", &options, None)?;
    let mut frozen = [(); 4].map(|()| Samples::default());
    let mut total = [(); 4].map(|()| Samples::default());
    for repetition in 0..=setting.args.repetitions {
        for (way, (name, attach, ask)) in ways.iter().enumerate() {
            let store = StoreDir::within(setting.tmpfs.path(), name)?;
            let controller = Attached::with(guest.pid, &store, attach, ask)?;
            let (mut stood, mut took) = (Samples::default(), Samples::default());
            for _ in 0..DELTAS {
                guest.write_once()?;
                let taken = checkpoint(guest.pid, &store, ask)?;
                stood.0.push(number(&taken, "frozen_ms")?);
                took.0.push(number(&taken, "total_ms")?);
            }
            controller.let_go()?;
            if repetition > 0 {
                frozen[way].0.push(stood.median());
                total[way].0.push(took.median());
            }
        }
    }
    guest.kill()?;
    std::fs::remove_file(key)?;
    let row = |way: usize| {
        let what = if way == 3 { "encrypted".to_owned() } else { format!("compressed with {}", ways[way].0) };
        Row {
            name: format!("delta of {WRITTEN_MIB} MiB, {what}: frozen time over that of one as it is"),
            figures: frozen[way].over(&frozen[0]),
            bound: BOUND,
            unit: "×",
            behind: vec![
                ("ms".to_owned(), frozen[way].clone()),
                ("as it is ms".to_owned(), frozen[0].clone()),
                ("whole ms".to_owned(), total[way].clone()),
                ("as it is ms".to_owned(), total[0].clone()),
            ],
        }
    };
    Ok((1..4).map(row).collect())
}
