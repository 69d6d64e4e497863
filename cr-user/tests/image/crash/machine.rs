//! What a disk holds, and what it may hold after the power was lost.
//!
//! Bytes that were not made durable may be there, wholly or in part, or not; so may names that were not made durable, each
//! independent of the others. A rename is a name that comes and one that goes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::recorder::Change;

/// So many changes of names are lost in all combinations, where it is to be thorough; else, the combinations that a disk
/// which keeps their order may leave, and those where one of them is lost or one alone is kept.
const ALL_COMBINATIONS: usize = 6;

#[derive(Debug)]
pub struct Machine {
    /// The first one is the root.
    nodes: Vec<Node>,
}

#[derive(Debug)]
enum Node {
    Dir { durable: Names, pending: Vec<Name> },
    File { durable: Arc<Content>, pending: Vec<Data> },
}

type Names = BTreeMap<String, usize>;

#[derive(Debug, Clone)]
enum Name {
    Comes(String, usize),
    Goes(String, usize),
}

#[derive(Debug)]
enum Data {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// The bytes of a file, with their hash.
#[derive(Debug)]
struct Content(Vec<u8>, blake3::Hash);

/// Directories (none) and files, by path.
#[derive(Debug, Clone, Default)]
pub struct Tree(BTreeMap<PathBuf, Option<Arc<Content>>>);

/// One disk after a power loss.
#[derive(Debug)]
pub struct State {
    pub tree: Tree,
    pub how: String,
}

/// What became of the bytes of each file that were not durable.
#[derive(Debug, Clone, Copy)]
enum Kept {
    All,
    None,
    /// The file has its size and zeroes.
    Size,
    /// The first half of the writes.
    FirstHalf,
    /// The last write alone.
    Last,
    /// All, but of the last write the beginning alone, up to a sector of so many bytes.
    Beginning(u64),
    /// All, but of the last write the end alone.
    End(u64),
}

const THOROUGH: &[Kept] = &[
    Kept::All,
    Kept::None,
    Kept::Size,
    Kept::FirstHalf,
    Kept::Last,
    Kept::Beginning(512),
    Kept::Beginning(4096),
    Kept::End(512),
    Kept::End(4096),
];
const FEW: &[Kept] = &[Kept::All, Kept::None, Kept::Size, Kept::Beginning(512)];

impl Default for Machine {
    fn default() -> Self {
        Self { nodes: vec![Node::Dir { durable: Names::new(), pending: Vec::new() }] }
    }
}

impl Machine {
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::CreateDir(path) => self.add(path, Node::Dir { durable: Names::new(), pending: Vec::new() }),
            Change::Create(path) => {
                if self.find(path).is_none() {
                    self.add(path, Node::File { durable: Content::new(Vec::new()), pending: Vec::new() });
                }
            }
            Change::Write(path, offset, bytes) => self.change_file(path, Data::Write(*offset, bytes.clone())),
            Change::SetLen(path, len) => self.change_file(path, Data::SetLen(*len)),
            Change::SyncData(path) => {
                let node = self.find(path).expect("a file that is synced");
                let Node::File { durable, pending } = &mut self.nodes[node] else {
                    panic!("{} is no file", path.display())
                };
                let mut bytes = durable.0.clone();
                pending.drain(..).for_each(|data| data.apply(&mut bytes));
                *durable = Content::new(bytes);
            }
            Change::Rename(from, to) => {
                let node = self.find(from).expect("a file that is renamed");
                self.change_names(to, |name| Name::Comes(name, node));
                self.change_names(from, |name| Name::Goes(name, node));
            }
            Change::Remove(path) => {
                let node = self.find(path).expect("a file that is removed");
                self.change_names(path, |name| Name::Goes(name, node));
            }
            Change::SyncDir(path) => {
                let node = self.find(path).expect("a directory that is synced");
                let Node::Dir { durable, pending } = &mut self.nodes[node] else {
                    panic!("{} is no directory", path.display())
                };
                pending.drain(..).for_each(|name| name.apply(durable));
            }
        }
    }

    fn add(&mut self, path: &Path, node: Node) {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        self.change_names(path, |name| Name::Comes(name, node));
    }

    fn change_names(&mut self, path: &Path, change: impl FnOnce(String) -> Name) {
        let (above, name) = (path.parent().expect("below the root"), path.file_name().expect("a name"));
        let above = self.find(above).expect("the directory above");
        let Node::Dir { pending, .. } = &mut self.nodes[above] else {
            panic!("no directory is above {}", path.display())
        };
        pending.push(change(name.to_string_lossy().into_owned()));
    }

    fn change_file(&mut self, path: &Path, data: Data) {
        let node = self.find(path).expect("a file that is written");
        let Node::File { pending, .. } = &mut self.nodes[node] else { panic!("{} is no file", path.display()) };
        pending.push(data);
    }

    /// The node of that name, as a running program sees it.
    fn find(&self, path: &Path) -> Option<usize> {
        path.components().try_fold(0, |node, part| {
            let Node::Dir { durable, pending } = &self.nodes[node] else { return None };
            let mut names = durable.clone();
            for name in pending {
                name.apply(&mut names);
            }
            names.get(&*part.as_os_str().to_string_lossy()).copied()
        })
    }

    /// What a running program sees.
    pub fn tree_as_seen(&self) -> Tree {
        let all = self
            .nodes
            .iter()
            .map(|node| if let Node::Dir { pending, .. } = node { vec![true; pending.len()] } else { vec![] });
        self.tree(&all.collect::<Vec<_>>(), &self.contents(Kept::All))
    }

    /// What may be found after the power was lost now.
    pub fn crash_states(&self, thorough: bool) -> Vec<State> {
        let mut names = vec![Vec::new()];
        for node in &self.nodes {
            let ways =
                if let Node::Dir { pending, .. } = node { combinations(pending.len(), thorough) } else { vec![vec![]] };
            let longer = names.iter().flat_map(|before| {
                ways.iter().map(|way| before.iter().cloned().chain([way.clone()]).collect::<Vec<_>>())
            });
            names = longer.collect();
        }
        let mut states = Vec::new();
        for kept in if thorough { THOROUGH } else { FEW } {
            let contents = self.contents(*kept);
            for survived in &names {
                let how = format!("bytes: {kept:?}, names: {:?}", self.names_that(survived));
                states.push(State { tree: self.tree(survived, &contents), how });
            }
        }
        states
    }

    fn names_that(&self, survived: &[Vec<bool>]) -> Vec<String> {
        let mut all = Vec::new();
        for (node, survived) in self.nodes.iter().zip(survived) {
            let Node::Dir { pending, .. } = node else { continue };
            all.extend(pending.iter().zip(survived).map(|(name, kept)| {
                let (sign, name) = match name {
                    Name::Comes(name, _) => ('+', name),
                    Name::Goes(name, _) => ('-', name),
                };
                format!("{sign}{name} {}", if *kept { "kept" } else { "lost" })
            }));
        }
        all
    }

    /// The bytes of each file; none of directories.
    fn contents(&self, kept: Kept) -> Vec<Option<Arc<Content>>> {
        let file = |node: &Node| match node {
            Node::Dir { .. } => None,
            Node::File { durable, pending } if pending.is_empty() => Some(durable.clone()),
            Node::File { durable, pending } => Some(Content::new(kept.of(&durable.0, pending))),
        };
        self.nodes.iter().map(file).collect()
    }

    fn tree(&self, survived: &[Vec<bool>], contents: &[Option<Arc<Content>>]) -> Tree {
        let mut tree = Tree::default();
        let mut open = vec![(PathBuf::new(), 0)];
        while let Some((path, node)) = open.pop() {
            let Node::Dir { durable, pending } = &self.nodes[node] else {
                tree.0.insert(path, contents[node].clone());
                continue;
            };
            let mut names = durable.clone();
            let kept = pending.iter().zip(&survived[node]).filter(|(_, kept)| **kept);
            kept.for_each(|(name, _)| name.apply(&mut names));
            open.extend(names.into_iter().map(|(name, node)| (path.join(name), node)));
            if node != 0 {
                tree.0.insert(path, None);
            }
        }
        tree
    }
}

/// Which of so many changes survive.
fn combinations(count: usize, thorough: bool) -> Vec<Vec<bool>> {
    if count <= 2 || (thorough && count <= ALL_COMBINATIONS) {
        return (0..1_u32 << count).map(|bits| (0..count).map(|n| bits >> n & 1 == 1).collect()).collect();
    }
    let in_order = (0..=count).map(|first| (0..count).map(|n| n < first).collect());
    let one_lost = (0..count).map(|lost| (0..count).map(|n| n != lost).collect());
    let one_kept = (0..count).map(|kept| (0..count).map(|n| n == kept).collect());
    in_order.chain(one_lost).chain(one_kept).collect()
}

impl Content {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let hash = blake3::hash(&bytes);
        Arc::new(Self(bytes, hash))
    }
}

impl Name {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Comes(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Goes(name, node) => {
                if names.get(name) == Some(node) {
                    names.remove(name);
                }
            }
        }
    }
}

impl Data {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(offset, new) => write(bytes, *offset, new),
            Self::SetLen(len) => bytes.resize(*len as usize, 0),
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + new.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(new);
}

impl Kept {
    fn of(self, durable: &[u8], pending: &[Data]) -> Vec<u8> {
        let mut bytes = durable.to_vec();
        let mut apply = |some: &[Data]| some.iter().for_each(|data| data.apply(&mut bytes));
        let Some((last, before)) = pending.split_last() else { return bytes };
        match self {
            Self::All => apply(pending),
            Self::None => (),
            Self::FirstHalf => apply(&pending[..pending.len() / 2]),
            Self::Last => last.apply(&mut bytes),
            Self::Size => {
                apply(pending);
                let size = bytes.len();
                bytes = durable.to_vec();
                bytes.resize(size, 0);
            }
            Self::Beginning(sector) | Self::End(sector) => {
                apply(before);
                let Data::Write(offset, new) = last else { return bytes };
                // A boundary of sectors in the middle of it, if there is one.
                let middle = (offset + new.len() as u64 / 2) / sector * sector;
                let cut = middle.saturating_sub(*offset) as usize;
                match self {
                    Self::Beginning(_) => write(&mut bytes, *offset, &new[..cut]),
                    _ => write(&mut bytes, offset + cut as u64, &new[cut..]),
                }
            }
        }
        bytes
    }
}

impl State {
    /// The same for states that cannot be told apart.
    pub fn key(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (path, file) in &self.tree.0 {
            hasher.update(path.as_os_str().as_encoded_bytes()).update(&[u8::from(file.is_some())]);
            if let Some(content) = file {
                hasher.update(content.1.as_bytes());
            }
        }
        hasher.finalize()
    }
}

impl Tree {
    /// The bytes of a file, if it is there.
    pub fn file(&self, path: &Path) -> Option<&[u8]> {
        self.0.get(path)?.as_ref().map(|content| content.0.as_slice())
    }

    /// Makes a folder hold this and nothing else.
    pub fn put_into(&self, folder: &Path) {
        for entry in fs::read_dir(folder).expect("list").flatten() {
            fs::remove_dir_all(entry.path()).expect("only directories are in there");
        }
        for (path, file) in &self.0 {
            let path = folder.join(path);
            match file {
                Some(content) => fs::write(path, &content.0).expect("write"),
                None => fs::create_dir(path).expect("mkdir"),
            }
        }
    }

    /// Whether this is what a folder holds.
    pub fn is_in(&self, folder: &Path) -> bool {
        let directories = self.0.iter().filter(|(_, file)| file.is_none()).map(|(path, _)| folder.join(path));
        let listed = [folder.to_owned()].into_iter().chain(directories).filter_map(|path| fs::read_dir(path).ok());
        listed.flatten().count() == self.0.len()
            && self.0.iter().all(|(path, file)| match file {
                Some(content) => fs::read(folder.join(path)).is_ok_and(|found| found == content.0),
                None => folder.join(path).is_dir(),
            })
    }
}
