//! The jobs: guests of `tests/guests` that keep to `bench.h`, and LAMMPS.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use cr_bench::guest::Guest;
use cr_bench::strings;

use crate::Setting;
use crate::modes::Mode;

/// A job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Job {
    /// Heat equation: two threads rewrite 256 MiB in each step.
    Solver,
    /// Updates at random places of 512 MiB by two threads, as GUPS has them.
    Random,
    /// The same in huge pages.
    RandomHuge,
    /// Streams over 768 MiB by two threads, as STREAM's triad.
    Stream,
    /// Mappings and blocks of the heap that come and go, by four threads.
    Allocator,
    /// System calls: getppid, pread, a pipe.
    Calls,
    /// 4 GiB resident: reads here and there, and short sleeps.
    Idle,
    /// LAMMPS, 256,000 Lennard-Jones atoms in two MPI processes: a real program, from Debian's packages.
    Lammps,
}

/// How much work is given to find out how much it takes.
const SAMPLE_SECONDS: f64 = 1.0;

impl Job {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Solver,
        Self::Random,
        Self::RandomHuge,
        Self::Stream,
        Self::Allocator,
        Self::Calls,
        Self::Idle,
        Self::Lammps,
    ];

    /// In the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Solver => "solver",
            Self::Random => "random writer",
            Self::RandomHuge => "random writer, huge pages",
            Self::Stream => "streaming writer",
            Self::Allocator => "allocator",
            Self::Calls => "system calls",
            Self::Idle => "idle, 4 GiB",
            Self::Lammps => "LAMMPS",
        }
    }

    /// The modes that make sense for it. What is not tracked can only lose by what is watched for all: system calls and faults.
    pub fn modes(self) -> &'static [Mode] {
        match self {
            Self::Calls | Self::Allocator => &[Mode::Alone, Mode::Tracked, Mode::Interval, Mode::Beside],
            _ => &[Mode::Alone, Mode::Tracked, Mode::Interval],
        }
    }

    /// What the ratio to `alone` must not exceed, where that is promised. (That of an idle job is a figure of its own, `quiet`: two
    /// processes differ by more than its bound, since each has other physical pages.)
    pub fn bound(self, mode: Mode) -> Option<f64> {
        match (self, mode) {
            (Self::Solver, Mode::Interval) => Some(1.02),
            (Self::Calls, Mode::Tracked) => Some(1.05),
            _ => None,
        }
    }

    /// What else it says of its work, in milliseconds.
    pub fn details(self) -> &'static [&'static str] {
        match self {
            Self::Calls => &["getppid", "pread", "pipe"],
            Self::Idle => &["reads", "late", "cpu"],
            _ => &[],
        }
    }

    /// Whether it can be had on this machine.
    pub fn is_here(self) -> Result<()> {
        let runs =
            |program: &str, args: &str| Command::new(program).arg(args).output().is_ok_and(|o| o.status.success());
        if self == Self::Lammps {
            ensure!(
                runs("lmp", "-h"),
                "there is no LAMMPS: `cargo xtask bench overhead` installs Debian's package lammps"
            );
            ensure!(runs("mpirun", "--version"), "there is no mpirun: the package is openmpi-bin");
        }
        Ok(())
    }

    /// Work, in units of the job, that takes about so long alone.
    pub fn work_for(self, setting: &Setting, seconds: f64) -> Result<u64> {
        let mut work = 1;
        loop {
            let mut guest = self.start(setting, work, None)?;
            let took = self.work(&mut guest)?;
            guest.finish()?;
            if took >= SAMPLE_SECONDS {
                return Ok(((work as f64 * seconds / took) as u64).max(1));
            }
            // Not more than ten times at once: the first may have been over before it really began.
            work = ((work as f64 * 1.3 * SAMPLE_SECONDS / took).ceil() as u64).clamp(work + 1, work * 10);
        }
    }

    /// Starts it, with that much work before it, and waits until it is set up.
    pub fn start(self, setting: &Setting, work: u64, under: Option<&[String]>) -> Result<Guest> {
        let folder = setting.tmpfs.path();
        let guest = |name: &str, options: &[&dyn std::fmt::Display]| {
            let options = [strings(&[&"--work", &work]), strings(options)].concat();
            Guest::start(folder, name, &options, under)
        };
        match self {
            // Its first step is the set-up's.
            Self::Solver => Guest::launch(folder, under, |dir| {
                let mut solver = Command::new(cr_tests::guest("solver"));
                solver.args(strings(&[&"--mib", &256, &"--threads", &2, &"--steps", &(work + 1)]));
                solver.arg("--dir").arg(dir).arg("--hold");
                Ok(solver)
            }),
            Self::Random => guest("gups", &[&"--mib", &512]),
            Self::RandomHuge => guest("gups", &[&"--mib", &512, &"--huge"]),
            Self::Stream => guest("triad", &[&"--mib", &768]),
            Self::Allocator => guest("churn", &[]),
            Self::Calls => guest("calls", &[]),
            Self::Idle => guest("resident", &[&"--mib", &4096, &"--sleeps", &(work * 10)]),
            Self::Lammps => Guest::launch(folder, under, |dir| lammps(dir, work)),
        }
    }

    /// Has it do its work, and gives the seconds that this took, by its own account.
    pub fn work(self, guest: &mut Guest) -> Result<f64> {
        if self == Self::Lammps {
            guest.go()?;
            // Before the work there was one step, which is not it.
            let told = |guest: &Guest| loop_times(guest.dir()).get(1).copied();
            guest.wait_every(Duration::from_millis(20), "LAMMPS has done its steps", |guest| told(guest).is_some())?;
            return told(guest).context("LAMMPS does not say how long it took");
        }
        Ok(guest.round()? / 1e3)
    }
}

/// A liquid of Lennard-Jones atoms that melts: the usual first example. It is ready after a first step, and waits to be told.
fn lammps(dir: &Path, work: u64) -> Result<Command> {
    const CELLS: u32 = 40;
    let (dir, script) = (dir.to_string_lossy(), dir.join("in.melt"));
    let input = format!(
        "units lj\natom_style atomic\nlattice fcc 0.8442\n\
         region box block 0 {CELLS} 0 {CELLS} 0 {CELLS}\ncreate_box 1 box\ncreate_atoms 1 box\nmass 1 1.0\n\
         velocity all create 3.0 87287 loop geom\npair_style lj/cut 2.5\npair_coeff 1 1 1.0 1.0 2.5\n\
         neighbor 0.3 bin\nneigh_modify every 20 delay 0 check no\nfix 1 all nve\nthermo 1000000\n\
         run 1\n\
         shell cp -P {dir}/pid {dir}/ready\n\
         shell sh {dir}/wait\n\
         run {work}\n"
    );
    fs::write(&script, input)?;
    fs::write(script.with_file_name("wait"), format!("until [ -e {dir}/go.1 ]; do sleep 0.01; done\n"))?;
    // The job is what comes after `exec`: its pid is the shell's. Between ranks on one machine Open MPI needs no network.
    let run = format!(
        "ln -s $$ {dir}/pid; exec mpirun --allow-run-as-root --oversubscribe --mca pml ob1 --mca btl self,vader -n 2 \
         lmp -in {dir}/in.melt -log {dir}/log.lammps -screen none"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &run]);
    Ok(command)
}

/// Seconds of each run of steps that LAMMPS has logged.
fn loop_times(dir: &Path) -> Vec<f64> {
    let log = fs::read_to_string(dir.join("log.lammps")).unwrap_or_default();
    let seconds = |line: &str| line.strip_prefix("Loop time of ")?.split_once(' ')?.0.parse().ok();
    log.lines().filter_map(seconds).collect()
}
