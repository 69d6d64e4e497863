//! The two ends of the guest `stream`, each a job, or what runs beside one.

use crate::Job;

/// Starts a server; it comes with its port.
#[track_caller]
pub fn stream_server(args: &[&str]) -> (Job, String) {
    let server = Job::start("stream", &[&["--serve", "1"], args].concat());
    let port = server.read_link("say.port").expect("the server says its port");
    (server, port)
}

/// Starts a client of the server at this port.
#[track_caller]
pub fn stream_client(port: &str, args: &[&str]) -> Job {
    Job::start("stream", &[&["--connect", port], args].concat())
}
