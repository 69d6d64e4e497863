//! Arguments that several subcommands have.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use cr::bucket::Need;
use cr::checkpoint::{self, LeaveOut, MemoryRange};
use cr::compact;
use cr::image::Compression;
use cr::object::files::external::Key;
use cr::object::files::inet::Policy;
use cr::object::files::net::queue;
use cr::policy::{Cadence, DEFAULT_MTBF, LEAST_MTBF};
use cr::seal::Keys;
use cr::supervise::{Automatic, Config, Outcome};

use super::keys::{SecretArg, SignArg};
use super::place::{Opened, Place};

/// The store.
#[derive(Debug, Args)]
pub(super) struct StoreArg {
    /// The directory that holds the job's checkpoints; or a bucket, as `s3://BUCKET/PREFIX` (docs/buckets.md).
    #[arg(long, value_name = "DIR|URL")]
    pub(super) store: PathBuf,

    /// With a bucket: the directory on this machine in which checkpoints are written before they are uploaded.
    ///
    /// Without it, one of its own below /var/lib/cr/spool, for others than root below ~/.local/state/cr/spool.
    #[arg(long, value_name = "DIR")]
    pub(super) spool: Option<PathBuf>,

    #[command(flatten)]
    secret: SecretArg,
}

impl StoreArg {
    /// The store, to be looked at; of one in a bucket what is needed is fetched.
    pub(super) fn open(&self, need: Need) -> cr::Result<Opened> {
        Opened::of(&self.store, need, &self.secret.keys(&self.store, || false)?)
    }

    /// The store, which must be there, to be written to.
    pub(super) fn place(&self) -> cr::Result<Place> {
        Ok(self.place_without_keys()?.with(self.secret.keys(&self.store, || false)?))
    }

    /// The store, to be written to, and made if it is not there.
    pub(super) fn place_to_make(&self) -> cr::Result<Place> {
        let place = self.place_without_keys()?;
        let keys = self.secret.keys(&self.store, || !place.is_there())?;
        Ok(place.with(keys))
    }

    fn place_without_keys(&self) -> cr::Result<Place> {
        Place::of(&self.store, self.spool.as_deref(), Keys::default())
    }
}

/// How checkpoints are taken.
#[derive(Debug, Args)]
pub(super) struct Taking {
    /// Most memory that cr uses for pages on their way to the store: `64M`, `1G`.
    ///
    /// Where the job writes more than this between two looks at it, it waits for the disk while it is frozen.
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    memory_limit: u64,

    /// Leave memory out: `7f0000000000-7f0000200000`, hexadecimal and at pages as in /proc/PID/maps, of every process of the
    /// job; or `PID:START-END`, of one. May be given several times.
    ///
    /// The checkpoint says what it leaves out, and is restored only with `cr restore --accept-missing`.
    #[arg(long, value_name = "START-END")]
    skip_memory: Vec<MemoryRange>,

    /// Leave out memory that the job wants left out of core dumps (`MADV_DONTDUMP`).
    #[arg(long)]
    honour_dontdump: bool,

    /// Let a Unix socket of the job be connected to this one outside: `unix:PATH` or `unix:@NAME`, the name that its other end
    /// has; or `unix:[INODE]`, the job's own socket. May be given several times.
    ///
    /// A restore connects it anew, or to another: `unix:PATH=OTHER`. Whoever listens there sees a new client; so nothing may wait
    /// to be read by the job when the checkpoint is taken.
    #[arg(long, value_name = "KEY")]
    external: Vec<Key>,

    /// What becomes of established TCP connections with somebody outside of the job: `keep` them, so that they go on after a
    /// restore if the other end is still there; `close` them, so that the job then sees a reset; or `refuse` them. The checkpoint
    /// notes it; given to a restore, it is what counts.
    ///
    /// Without it they are kept.
    #[arg(long, value_name = "POLICY")]
    tcp: Option<Tcp>,

    /// Compress pages: `lz4`, `zstd` (smaller, slower), `auto` (lz4 where a sample says that it is worth the time) or `none`.
    ///
    /// It is done by threads of cr while the job runs, block by block of 64 KiB, where it saves an eighth; what has to be written
    /// while the job stands still is not compressed. It pays where the store is slow or small. Without it, nothing is compressed.
    #[arg(long, value_name = "HOW")]
    compress: Option<Compression>,

    /// What becomes of datagrams that the job has not read (UDP and the like).
    ///
    /// `keep`: those of UDP are put back by a restore, where that is possible, and the checkpoint says what is lost. `drop`: all are
    /// lost. `refuse`: while there are any, no checkpoint is taken. Without it, they are kept.
    #[arg(long, value_name = "POLICY", value_enum)]
    udp: Option<Udp>,

    #[command(flatten)]
    pub(super) sign: SignArg,
}

/// What becomes of established TCP connections with somebody outside of the job.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tcp {
    /// They go on after a restore, if the other end is still there.
    Keep,
    /// The job sees after a restore that they were reset.
    Close,
    /// There must be none.
    Refuse,
}

impl From<Tcp> for Policy {
    fn from(tcp: Tcp) -> Self {
        match tcp {
            Tcp::Keep => Self::Keep,
            Tcp::Close => Self::Close,
            Tcp::Refuse => Self::Refuse,
        }
    }
}

/// What becomes of datagrams that the job has not read.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Udp {
    /// Keep what can be put back.
    Keep,
    /// Lose them.
    Drop,
    /// Take no checkpoint while there are any.
    Refuse,
}

impl From<Udp> for queue::Policy {
    fn from(udp: Udp) -> Self {
        match udp {
            Udp::Keep => Self::Keep,
            Udp::Drop => Self::Drop,
            Udp::Refuse => Self::Refuse,
        }
    }
}

impl Taking {
    pub(super) fn tcp(&self) -> Option<Policy> {
        self.tcp.map(Policy::from)
    }

    pub(super) fn options(&self) -> checkpoint::Options {
        let leave_out = LeaveOut::default().with(&self.skip_memory, self.honour_dontdump);
        checkpoint::Options {
            memory_limit: self.memory_limit,
            leave_out,
            external: self.external.clone(),
            tcp: self.tcp().unwrap_or_default(),
            udp: self.udp.map(queue::Policy::from),
            compression: self.compress,
            ..checkpoint::Options::default()
        }
    }
}

/// How a job is supervised.
#[derive(Debug, Args)]
pub(super) struct Supervision {
    #[command(flatten)]
    pub(super) store: StoreArg,

    /// Time between checkpoints: `500ms`, `30s`, `10min`, `1h`; or `auto`. Without it, only those are taken that are asked for.
    ///
    /// With `auto` it is found from what checkpoints are seen to cost and from --mtbf, so that as little time as can be is lost to
    /// checkpoints and to failures together (Daly's formula), and anew after each checkpoint: from 1 s to 6 h, the first after 30 s
    /// at the latest. `cr watch` and DIR/log.jsonl show the numbers.
    #[arg(long, value_name = "T", value_parser = parse_interval)]
    interval: Option<Interval>,

    /// With --interval auto: the mean time between failures of the machines that the job runs on: `24h` (if not given), `7days`.
    ///
    /// Count whatever ends the job: failures of any of its machines, preemptions, time limits.
    #[arg(long, value_name = "T", value_parser = parse_mtbf, requires = "interval")]
    mtbf: Option<Duration>,

    /// Compact a chain once it has N images: make one full image of it while the job runs. 0 for never.
    ///
    /// Also where the deltas together hold more than a quarter of the pages of a full image. It is done between checkpoints, with idle
    /// I/O priority and within --memory-limit. `cr prune` removes the old images.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_images)]
    compact_after: u32,

    /// Most bytes a second that such a compaction reads, and as many that it writes: `50M/s`.
    #[arg(long, value_name = "SIZE/s", default_value = "128M/s", value_parser = parse_bandwidth)]
    compact_bandwidth: u64,

    /// With a bucket: most bytes a second that are uploaded: `50M/s`. Without it, as many as there can be.
    #[arg(long, value_name = "SIZE/s", value_parser = parse_bandwidth)]
    upload_bandwidth: Option<u64>,

    #[command(flatten)]
    pub(super) taking: Taking,
}

/// What was said about the interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interval {
    Fixed(Duration),
    Auto,
}

impl Supervision {
    /// What is wrong with the arguments, taken together.
    pub(super) fn contradiction(&self) -> Option<String> {
        let fixed = matches!(self.interval, Some(Interval::Fixed(_)));
        (fixed && self.mtbf.is_some()).then(|| {
            "--mtbf is for --interval auto: a fixed interval does not depend on it. Leave one of the two out, or write --interval auto"
                .to_owned()
        })
    }

    fn cadence(&self) -> Option<Cadence> {
        self.interval.map(|interval| match interval {
            Interval::Fixed(interval) => Cadence::Every(interval),
            Interval::Auto => Cadence::Auto { mtbf: self.mtbf.unwrap_or(DEFAULT_MTBF) },
        })
    }

    /// `place` is where the store is.
    pub(super) fn config(&self, place: &Place) -> cr::Result<Config> {
        let keys = Keys { signer: self.taking.sign.signer()?, ..place.keys.clone() };
        let mut checkpoints = self.taking.options();
        // Programs map and unmap as they go.
        checkpoints.leave_out = checkpoints.leave_out.standing();
        let memory_limit = checkpoints.memory_limit;
        let options = compact::Options { memory_limit, bandwidth: Some(self.compact_bandwidth) };
        let compaction = Automatic { after: self.compact_after, options };
        let (store, cadence) = (place.dir.clone(), self.cadence());
        let bucket = place.upload(self.upload_bandwidth);
        Ok(Config { store, bucket, keys, cadence, checkpoints, tcp: self.taking.tcp(), compaction })
    }
}

/// The exit code of a supervision that has ended, with a word on those that are no exit codes of the job's.
pub(super) fn exit_code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Ended(code) => *code,
        Outcome::EndedUnknown => {
            log::warn!("the job has ended; this kernel tells only its parent how");
            0
        }
        Outcome::LetGo | Outcome::Detached(_) => 0,
    }
}

/// Bytes, with an optional unit of 1024s.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        unit => return Err(format!("`{unit}` is no unit of bytes: use K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|_| "give a number of bytes, such as 268435456 or 256M".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("that is more bytes than there are")?;
    if bytes < 1 << 20 { Err("less than 1M is too little to work with".to_owned()) } else { Ok(bytes) }
}

/// Bytes a second.
pub(super) fn parse_bandwidth(text: &str) -> Result<u64, String> {
    parse_size(text.strip_suffix("/s").unwrap_or(text)).map_err(|why| format!("{why}; write 50M/s"))
}

fn parse_images(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(1) => Err("one image is no chain: give at least 2, or 0 for never".to_owned()),
        Ok(images) => Ok(images),
        Err(_) => Err("give a number of images".to_owned()),
    }
}

fn parse_interval(text: &str) -> Result<Interval, String> {
    if text == "auto" {
        return Ok(Interval::Auto);
    }
    let interval = humantime::parse_duration(text).map_err(|e| format!("{e}; write 500ms, 30s or 10min, or auto"))?;
    if interval < Duration::from_millis(10) {
        return Err("less than 10ms is no interval".to_owned());
    }
    Ok(Interval::Fixed(interval))
}

fn parse_mtbf(text: &str) -> Result<Duration, String> {
    /// More than anybody has measured.
    const MOST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let mtbf = humantime::parse_duration(text).map_err(|e| format!("{e}; write 90min, 24h or 7days"))?;
    if mtbf < LEAST_MTBF {
        return Err(
            "with a failure every 10s or less nothing is ever done: name the mean time between two failures".to_owned()
        );
    }
    if mtbf > MOST { Err("nothing runs for more than 100 years without a failure".to_owned()) } else { Ok(mtbf) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("256M"), Ok(256 << 20));
        assert_eq!(parse_size("1GiB"), Ok(1 << 30));
        assert_eq!(parse_size("2097152"), Ok(2 << 20));
        for bad in ["", "M", "1X", "-1", "1", "99999999999T", "1.5G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bandwidths_are_sizes_a_second() {
        assert_eq!(parse_bandwidth("50M/s"), Ok(50 << 20));
        assert_eq!(parse_bandwidth("1G"), Ok(1 << 30));
        for bad in ["", "/s", "50M/m", "0", "10k/s"] {
            assert!(parse_bandwidth(bad).is_err(), "{bad}");
        }
        assert_eq!((parse_images("0"), parse_images("16")), (Ok(0), Ok(16)));
        assert!(parse_images("1").is_err() && parse_images("-2").is_err());
    }

    #[test]
    fn intervals_have_units() {
        assert_eq!(parse_interval("1s"), Ok(Interval::Fixed(Duration::from_secs(1))));
        assert_eq!(parse_interval("500ms"), Ok(Interval::Fixed(Duration::from_millis(500))));
        assert_eq!(parse_interval("auto"), Ok(Interval::Auto));
        for bad in ["soon", "", "0s", "1", "-1s", "Auto", "auto 1s"] {
            assert!(parse_interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mean_times_between_failures_are_sensible() {
        assert_eq!(parse_mtbf("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_mtbf("7days"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "0s", "5s", "often", "24", "101years", "-1h"] {
            assert!(parse_mtbf(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mean_time_between_failures_is_for_auto_alone() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            supervision: Supervision,
        }
        let parse = |line: &[&str]| {
            Line::try_parse_from(["cr", "--store", "s"].iter().chain(line))
                .map(|line| line.supervision)
                .map_err(|e| e.kind())
        };
        let auto = parse(&["--interval", "auto", "--mtbf", "2h"]).unwrap();
        assert_eq!(
            (auto.contradiction(), auto.cadence()),
            (None, Some(Cadence::Auto { mtbf: Duration::from_secs(7200) }))
        );
        assert_eq!(parse(&["--interval", "auto"]).unwrap().cadence(), Some(Cadence::Auto { mtbf: DEFAULT_MTBF }));
        assert!(parse(&["--interval", "10s", "--mtbf", "2h"]).unwrap().contradiction().is_some());
        assert_eq!(parse(&["--mtbf", "2h"]).err(), Some(clap::error::ErrorKind::MissingRequiredArgument));
        assert_eq!(parse(&[]).unwrap().cadence(), None);
    }
}
