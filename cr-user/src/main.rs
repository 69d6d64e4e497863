use cr::checkpoint::*;
use cr::store::*;
fn main() {
    let pid: i32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let n: u32 = std::env::args().nth(3).unwrap().parse().unwrap();
    let store = Store::create_or_open(std::path::Path::new(&std::env::args().nth(2).unwrap()), cr::object::KINDS).unwrap();
    let w = store.lock().unwrap();
    let mut job = Job::open(pid).unwrap();
    if store.newest_id().unwrap().is_some() { job.follow_chain(&store).unwrap(); }
    for _ in 0..n {
        match job.checkpoint(&w, &Options::default()) { Ok(r) => println!("{r:?}"), Err(e) => println!("ERR {e}") }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}
