//! Debian's `nginx`, a master and two workers, serves while checkpoints of it are taken, and after it was killed and restored. Its
//! clients are outside of the job; not one of their requests may fail.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

use cr_tests::{Job, LIMIT, Network, run, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const ADDRESS: &str = "127.0.0.1:8080";
/// Names and sizes of what is served: the last does not fit into the buffers of a socket.
const PAGES: [(&str, usize); 3] = [("small", 100), ("medium", 40_000), ("large", 12 << 20)];

const CONFIGURATION: &str = "
daemon off;
worker_processes 2;
user root;
pid nginx.pid;
events { worker_connections 256; }
http {
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    server { listen 127.0.0.1:8080; root pages; }
}
";

/// The content of a page: it is not the same at any two places near each other.
fn page(size: usize) -> Vec<u8> {
    (0..size.div_ceil(8))
        .flat_map(|n| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(size)
        .collect()
}

/// Clients that ask without pause, and count.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<Vec<AtomicU64>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Two connections for each page that are kept, and if `short`, one client for each that makes a new connection each time.
    fn start(short: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let kinds: Vec<(usize, bool)> = (0..PAGES.len())
            .flat_map(|n| [(n, true), (n, true), (n, false)])
            .filter(|(_, kept)| *kept || short)
            .collect();
        let answered: Arc<Vec<AtomicU64>> = Arc::new(kinds.iter().map(|_| AtomicU64::new(0)).collect());
        let client = |(index, (number, kept)): (usize, (usize, bool))| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || work(PAGES[number], kept, &stop, &answered[index]))
        };
        Self { clients: kinds.into_iter().enumerate().map(client).collect(), stop, answered }
    }

    /// Waits until each client has had some more answers.
    #[track_caller]
    fn advance(&self) {
        let before: Vec<u64> = self.answered.iter().map(|n| n.load(Ordering::Relaxed)).collect();
        wait_until("each client of nginx goes on", || {
            assert!(!self.clients.iter().any(JoinHandle::is_finished), "a client of nginx failed");
            self.answered.iter().zip(&before).all(|(now, before)| now.load(Ordering::Relaxed) > before + 2)
        });
    }

    #[track_caller]
    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client of nginx without an error");
        }
        eprintln!("answers to each client: {:?}", self.answered);
    }
}

fn connect() -> BufReader<TcpStream> {
    let stream = TcpStream::connect(ADDRESS).expect("a connection to nginx");
    // A broken restore shall fail, not hang.
    stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
    stream.set_write_timeout(Some(LIMIT)).expect("a time limit");
    BufReader::new(stream)
}

fn work((name, size): (&str, usize), kept: bool, stop: &AtomicBool, answered: &AtomicU64) {
    let expected = page(size);
    let mut connection = connect();
    while !stop.load(Ordering::Relaxed) {
        if !kept {
            connection = connect();
        }
        let how = if kept { "keep-alive" } else { "close" };
        let request = format!("GET /{name} HTTP/1.1\r\nHost: localhost\r\nConnection: {how}\r\n\r\n");
        connection.get_mut().write_all(request.as_bytes()).expect("a request to nginx");
        let body = answer(&mut connection);
        assert!(body == expected, "{name}: {} bytes that are not the page of {size}", body.len());
        if !kept {
            let rest = connection.read(&mut [0]).expect("the end of a connection to nginx");
            assert!(rest == 0, "{name}: more than the page");
        }
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which must be one of success.
fn answer(connection: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let length = connection.read_line(&mut head).expect("the head of an answer of nginx");
        assert!(length > 0, "nginx ended the connection after {head:?}");
    }
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).expect("a length");
    let mut body = vec![0; length];
    connection.read_exact(&mut body).expect("the body of an answer of nginx");
    body
}

/// Starts the server in the test's network, and waits until it answers; none where there is no nginx.
fn start_server() -> Option<Job> {
    if run(Command::new("sh").args(["-c", "command -v nginx"])).code != Some(0) {
        cr_tests::note_skip("no nginx; `cargo xtask setup` installs it");
        return None;
    }
    let mut server = Command::new("setsid");
    // The job's folder is its working directory.
    server.args([
        "sh",
        "-c",
        "while [ ! -e nginx.conf ]; do sleep 0.01; done; exec nginx -p \"$PWD\" -c nginx.conf -e error.log",
    ]);
    let job = Job::start_foreign("nginx", &mut server);
    fs::create_dir(job.dir().join("pages")).expect("a folder for the pages");
    for (name, size) in PAGES {
        fs::write(job.dir().join("pages").join(name), page(size)).expect("a page");
    }
    fs::write(job.dir().join("new.conf"), CONFIGURATION).expect("nginx's configuration");
    fs::rename(job.dir().join("new.conf"), job.dir().join("nginx.conf")).expect("nginx's configuration");
    job.wait("nginx listens", |_| TcpStream::connect(ADDRESS).is_ok());
    job.wait("its workers run", |job| job.processes().len() == 3);
    Some(job)
}

/// Nothing went wrong in the eyes of nginx, and it ends as it does when it is told to.
#[track_caller]
fn end(job: &mut Job) {
    kill(Pid::from_raw(job.pid()), Signal::SIGQUIT).expect("signal nginx");
    job.wait_for_end();
    let log = fs::read_to_string(job.dir().join("error.log")).unwrap_or_default();
    let wrong =
        log.lines().find(|line| ["[alert]", "[crit]", "[emerg]", "[error]"].iter().any(|word| line.contains(word)));
    assert_eq!(wrong, None, "nginx complains:\n{log}");
    job.verify();
}

#[test]
fn serves_during_checkpoints() {
    let Some(network) = Network::own() else { return };
    let Some(mut job) = start_server() else { return };
    let load = Load::start(true);
    load.advance();
    job.checkpoint(); // without a controller
    job.attach(&[]);
    job.wait_for_controller();
    for _ in 0..10 {
        sleep(Duration::from_millis(300));
        job.checkpoint();
        load.advance();
    }
    load.finish();
    end(&mut job);
    network.expect_no_rules();
}

#[test]
fn connections_go_on_after_a_kill() {
    let Some(network) = Network::own() else { return };
    let Some(mut job) = start_server() else { return };
    let load = Load::start(false);
    load.advance();
    job.checkpoint();
    for round in 0..3 {
        load.advance();
        job.checkpoint_and_kill(&[]);
        sleep(Duration::from_secs(round));
        job.restore_detached();
        load.advance();
    }
    load.finish();
    // New connections as well.
    let load = Load::start(true);
    load.advance();
    load.finish();
    end(&mut job);
    network.expect_no_rules();
}
