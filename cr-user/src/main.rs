use cr::remote::*;
fn main() {
    let pid: i32 = std::env::args().nth(1).unwrap().parse().unwrap();
    let t=std::time::Instant::now();
    let g = Gadgets::find(pid).unwrap();
    println!("{g:x?} {:?}", t.elapsed());
    let t=std::time::Instant::now();
    let f = Frozen::freeze(pid).unwrap();
    println!("frozen {:?} {:?}", f.tids(), t.elapsed());
    let t=std::time::Instant::now();
    let mut p = Puppet::begin(pid, &f.tids(), g).unwrap();
    println!("begin {:?}", t.elapsed());
    let t=std::time::Instant::now();
    let mut calls: Vec<Call> = (0..100).map(|_| Call::new(libc::SYS_getppid, &[])).collect();
    p.batch(&mut calls, &[]).unwrap();
    println!("batch {:?} {}", t.elapsed(), calls[99].result);
    let t=std::time::Instant::now();
    p.end().unwrap();
    println!("end {:?}", t.elapsed());
    f.thaw().unwrap();
}
