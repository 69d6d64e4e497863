use super::*;
use crate::image::{Compression, IndexInfo, Parent, page_digests};
use crate::store::{PageReader, Store, StoreWriter};

/// The same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A page of one of a few kinds, 0 being zero; odd kinds can be compressed.
fn page(kind: u64) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&kind.to_le_bytes());
    let mut page = vec![0; PAGE];
    if kind.is_multiple_of(2) && kind > 0 {
        hasher.finalize_xof().fill(&mut page);
    } else {
        page.fill(kind as u8);
    }
    page
}

/// By space and page, its kind.
type Model = HashMap<(u64, u64), u64>;

const SPACES: u64 = 3;
const PAGES: u64 = 600;

/// Takes pages in at random, some several times, as a checkpoint does that copies while the job runs.
fn fill(sink: &mut Sink, prior: Option<&Prior>, random: &mut Random, kinds: u64, model: &mut Model) {
    for _ in 0..60 {
        let (space, first) = (1 + random.below(SPACES), random.below(PAGES - 64));
        let count = 1 + random.below(64);
        let same = random.below(4) == 0;
        let mut bytes = Vec::new();
        for number in first..first + count {
            let old = model.get(&(space, number)).copied().filter(|_| same);
            let kind = old.unwrap_or_else(|| random.below(kinds));
            model.insert((space, number), kind);
            bytes.extend(page(kind));
        }
        let sums = page_digests(&bytes);
        sink.hurry(random.below(3) == 0);
        sink.absorb(space, std::slice::from_ref(&(first..first + count)), Summed { bytes: &bytes, sums: &sums }, prior)
            .expect("absorb");
    }
}

fn publish(writer: &StoreWriter, sink: Sink, parent: Option<Parent>) -> (Parent, u64) {
    let (content, gone) = (RangeSet::from(0..PAGES), RangeSet::new());
    let spaces = (1..=SPACES).map(|space| sink.space(space, &content, &gone)).collect();
    let finished = sink.into_writer().finish(IndexInfo { parent, spaces, ..IndexInfo::default() }).expect("finish");
    let bytes = finished.file_bytes;
    (writer.publish(finished).expect("publish"), bytes)
}

fn expect(store: &Store, model: &Model) {
    let chain = crate::store::Chain::open(store, None).expect("open");
    chain.verify_pages(1).expect("every checksum is right");
    let mut reader = PageReader::new(&chain);
    for (&(space, number), &kind) in model {
        match chain.lookup(space, number) {
            crate::store::Source::Stored { image, offset } => {
                assert!(reader.get(image, offset, 1).expect("read") == page(kind), "page {number} of space {space}");
            }
            other => assert!(kind == 0, "page {number} of space {space}, kind {kind}, is {other:?}"),
        }
    }
}

#[test]
fn pages_come_back_however_they_were_taken_in() {
    for (seed, compression) in (1..).zip([Compression::None, Compression::Lz4, Compression::Zstd, Compression::Auto]) {
        for kinds in [5, 100_000] {
            let directory = tempfile::tempdir().expect("tempdir");
            let writer = Store::create_or_open(directory.path(), &[]).expect("a store").lock().expect("lock");
            let mut random = Random(seed);
            let mut model = Model::new();
            let (mut parent, mut prior) = (None, None::<Arc<Prior>>);
            for _ in 0..4 {
                let image = writer.begin_packed(compression).expect("begin");
                let mut sink = Sink::new(image, prior.clone(), 1 << 20);
                if random.below(2) == 0 {
                    sink.relate(2, 1);
                }
                fill(&mut sink, prior.as_deref(), &mut random, kinds, &mut model);
                let (published, bytes) = publish(&writer, sink, parent);
                expect(writer.store(), &model);
                // Five kinds of pages, and those alone that were written again in the same slot.
                assert!(kinds > 5 || bytes < 1 << 20, "{bytes} bytes for five pages");
                parent = Some(published);
                let chain = crate::store::Chain::open(writer.store(), None).expect("open");
                prior = Some(Arc::new(Prior::new(chain)));
            }
        }
    }
}
