use cr::checkpoint::*;
use cr::store::*;
use cr::restore;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let store = Store::create_or_open(std::path::Path::new(&a[2]), cr::object::KINDS).unwrap();
    let w = store.lock().unwrap();
    if a[1] == "r" {
        let t = std::time::Instant::now();
        let r = match restore::restore(&store, None, &restore::Options { files: cr::object::files::FilePolicy::Rollback }) { Ok(r) => r, Err(e) => { eprintln!("ERR {e} ({})", e.exit_code()); std::process::exit(e.exit_code().into()) } };
        let pid = r.job_pid();
        let mut job = r.run().unwrap();
        eprintln!("restored {pid} in {:?}", t.elapsed());
        for _ in 0..a[3].parse().unwrap() {
            std::thread::sleep(std::time::Duration::from_millis(500));
            match job.checkpoint(&w, &Options::default()) { Ok(r) => eprintln!("{r:?}"), Err(e) => println!("ERR {e}") }
        }
        let mut st = 0;
        println!("{:?}", nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None));
        return;
    }
    let pid: i32 = a[1].parse().unwrap();
    let n: u32 = a[3].parse().unwrap();
    let mut job = Job::open(pid).unwrap();
    if store.newest_id().unwrap().is_some() { job.follow_chain(&store).unwrap(); }
    for _ in 0..n {
        match job.checkpoint(&w, &Options::default()) { Ok(r) => println!("{r:?}"), Err(e) => println!("ERR {e}") }
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
}
