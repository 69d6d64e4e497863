//! The objects of the ipc namespace, as `/proc/sysvipc` lists them; and what a restore does about one that is here, or is not.

use super::{Ipc, Object, Usage, name_of};
use crate::error::{Error, Result};
use crate::procfs;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A segment of shared memory.
    Segment,
    /// A set of semaphores.
    Semaphores,
    /// A message queue.
    Queue,
}

impl Kind {
    /// What it is.
    pub fn name(self) -> &'static str {
        match self {
            Self::Segment => "System V shared memory",
            Self::Semaphores => "System V semaphore set",
            Self::Queue => "System V message queue",
        }
    }

    /// Its word in `/proc`, and the letter of `ipcrm(1)`.
    fn words(self) -> (&'static str, char) {
        match self {
            Self::Segment => ("shm", 'm'),
            Self::Semaphores => ("sem", 's'),
            Self::Queue => ("msg", 'q'),
        }
    }

    /// The file that says which id the next object of the kind gets.
    pub fn next_id(self) -> String {
        format!("/proc/sys/kernel/{}_next_id", self.words().0)
    }

    /// Every object of the kind.
    ///
    /// # Errors
    /// When the list cannot be read.
    pub fn rows(self) -> Result<Vec<Row>> {
        let path = format!("/proc/sysvipc/{}", self.words().0);
        match procfs::text(&path) {
            Ok(text) => Ok(parse(&text)),
            // A kernel without System V IPC.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::system(format!("reading {path}"), e)),
        }
    }
}

/// What is told of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: i32,
    /// Its id.
    pub id: i32,
    /// Its mode, with what the kernel notes above the lower nine bits.
    pub mode: u32,
    columns: Vec<(String, i64)>,
}

impl Row {
    /// Another column; 0 if there is none of that name.
    pub fn get(&self, name: &str) -> i64 {
        self.columns.iter().find(|(n, _)| n == name).map_or(0, |(_, value)| *value)
    }

    /// When anything was last done with it, in seconds since 1970.
    pub fn last_use(&self) -> i64 {
        let times = self.columns.iter().filter(|(name, _)| name.ends_with("time"));
        times.map(|(_, at)| *at).max().unwrap_or(0)
    }
}

/// The rows of a list of `/proc/sysvipc`.
pub(super) fn parse(text: &str) -> Vec<Row> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let column = |(name, word): (&&str, &&str)| Some(((*name).to_owned(), word.parse().ok()?));
        Some(Row {
            key: words.first()?.parse().ok()?,
            id: words.get(1)?.parse().ok()?,
            mode: u32::from_str_radix(words.get(2)?, 8).ok()?,
            columns: names.iter().zip(&words).skip(3).filter_map(column).collect(),
        })
    };
    lines.filter_map(row).collect()
}

/// What a restore does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is gone: it is made again.
    Make,
    /// It is here: it becomes what it was.
    Reset,
    /// It is here as it was, or is somebody else's.
    Leave,
}

/// What an object that is here is compared with.
pub(super) struct Wanted<'a> {
    pub kind: Kind,
    pub object: &'a Object,
    /// Its size, by the name of its column; the number 0 for none.
    pub size: (&'static str, u64),
}

impl Wanted<'_> {
    /// What to do about it. `usage_of` tells who uses one that is here, or did so last; `same`, whether it is as it was. The
    /// job's own pids are free, or already those of what it is restored from.
    pub(super) fn plan(
        &self,
        ipc: &Ipc,
        usage_of: impl Fn(&Row) -> Usage,
        same: impl Fn(&Row) -> bool,
    ) -> Result<Plan> {
        let Self { kind, object, size } = self;
        let rows = kind.rows()?;
        let Some(row) = rows.iter().find(|r| r.id == object.id) else {
            let holder = rows.iter().find(|r| object.key != 0 && r.key == object.key);
            return match holder {
                None => Ok(Plan::Make),
                Some(_) if object.probably => Ok(Plan::Leave),
                Some(row) => {
                    let why = format!("its key {:#x} is now that of number {}", object.key, row.id);
                    Err(self.not_here(why, row.id))
                }
            };
        };
        let usage = usage_of(row);
        let made_alike = object.is_made_like(row) && (size.1 == 0 || row.get(size.0) as u64 == size.1);
        let by_the_job = usage.last.iter().any(|pid| ipc.pids.contains(pid));
        let is_it = made_alike && (ipc.place == super::place() || object.key != 0 || by_the_job);
        if object.probably && (!is_it || usage.stranger.is_some()) {
            return Ok(Plan::Leave);
        }
        if !is_it {
            return Err(self.not_here("another object has that number here".to_owned(), row.id));
        }
        if let Some(pid) = usage.stranger {
            let why = format!("{} uses it", name_of(pid));
            return Err(Error::NotHere { what: self.name(), why, todo: "end that process".to_owned() });
        }
        if object.probably && !by_the_job {
            if same(row) {
                return Ok(Plan::Leave);
            }
            let why = "it has changed, and whether the job or somebody else did that cannot be told".to_owned();
            let remove = format!("remove it if it is the job's (ipcrm -{} {})", kind.words().1, row.id);
            let todo = format!("{remove}; if it is another job's that was checkpointed, restore that one first");
            return Err(Error::NotHere { what: self.name(), why, todo });
        }
        Ok(Plan::Reset)
    }

    fn name(&self) -> String {
        format!("the {} {}", self.kind.name(), self.object.id)
    }

    fn not_here(&self, why: String, id: i32) -> Error {
        let todo = format!("remove that one if nobody needs it (ipcrm -{} {id})", self.kind.words().1);
        Error::NotHere { what: self.name(), why, todo }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_parsed_by_its_headings() {
        let text = "       key      msqid perms      cbytes       qnum lspid lrpid   uid      stime      ctime\n\
                    \x20-559038737      98304  1600           6          1  5002     0  1000 1795640930          7\n";
        let rows = parse(text);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].key as u32, rows[0].id, rows[0].mode), (0xdead_beef, 98304, 0o1600));
        assert_eq!((rows[0].get("lspid"), rows[0].get("uid"), rows[0].get("none")), (5002, 1000, 0));
        assert_eq!(rows[0].last_use(), 1_795_640_930);
    }
}
