//! A thread that is there before it is needed: to start one takes longer than much of what it is wanted for.

use std::any::Any;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What the thread is to do: it borrows from whoever waits for it.
type Work = Box<dyn FnOnce() + Send + 'static>;

/// A second thread, for work beside that of the first. It ends when this is dropped.
#[derive(Debug)]
pub struct Aide {
    work: Option<SyncSender<Work>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Aide {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let (work, orders) = sync_channel::<Work>(1);
        let (tell, done) = sync_channel(1);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            for order in orders {
                order();
                if tell.send(()).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { work: Some(work), done, thread: Some(thread) })
    }

    /// Does two things at a time: `one` on this thread, `other` on the calling one. A panic of either goes on here, once both have
    /// ended.
    pub fn beside<A: Send, B>(&mut self, one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
        let mut found: Option<std::thread::Result<A>> = None;
        let place = &mut found;
        let order = move || *place = Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(one)));
        let order: Box<dyn FnOnce() + Send + '_> = Box::new(order);
        // SAFETY: only the lifetime is changed. `under_way`, which outlives every use of what is borrowed here, waits in its drop,
        // which nothing skips, until the order has been carried out and dropped, or its thread has ended. Needed because the thread
        // outlives this call.
        let order = unsafe { std::mem::transmute::<Box<dyn FnOnce() + Send + '_>, Work>(order) };
        let sent = self.work.as_ref().is_some_and(|work| work.send(order).is_ok());
        let under_way = UnderWay(sent.then_some(&self.done));
        let other = other();
        drop(under_way);
        let one = found.unwrap_or_else(|| Err(Box::new("the thread beside has ended") as Box<dyn Any + Send>));
        (one.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), other)
    }
}

/// An order that was given. Dropping it waits until it has been carried out.
struct UnderWay<'a>(Option<&'a Receiver<()>>);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        /// To be woken may take longer than what is left to wait for.
        const SPIN: Duration = Duration::from_micros(500);
        let Some(done) = self.0 else { return };
        let started = Instant::now();
        while started.elapsed() < SPIN {
            match done.try_recv() {
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
                // An error says that the thread has ended, and has dropped the order too.
                Ok(()) | Err(TryRecvError::Disconnected) => return,
            }
        }
        let _ = done.recv();
    }
}

impl Drop for Aide {
    fn drop(&mut self) {
        self.work = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_borrows_and_answers_again_and_again() {
        let mut aide = Aide::start("test").unwrap();
        let words = ["one".to_owned(), "other".to_owned()];
        for _ in 0..1000 {
            assert_eq!(aide.beside(|| words[0].len(), || words[1].len()), (3, 5));
        }
    }

    #[test]
    fn a_panic_of_either_goes_on_once_both_have_ended() {
        let mut aide = Aide::start("test").unwrap();
        let ended = std::sync::atomic::AtomicBool::new(false);
        let slow = || {
            std::thread::sleep(Duration::from_millis(20));
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let caught = |aide: &mut Aide, one: &(dyn Fn() + Sync), other: &dyn Fn()| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| aide.beside(one, other))).is_err()
        };
        assert!(caught(&mut aide, &slow, &|| panic!("the second")));
        assert!(ended.load(std::sync::atomic::Ordering::Relaxed));
        assert!(caught(&mut aide, &|| panic!("the first"), &|| ()));
        assert_eq!(aide.beside(|| 1, || 2), (1, 2));
    }
}
