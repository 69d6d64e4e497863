//! Connections with somebody outside: nobody there is to hear anything until the job is complete, and then all of it.

use crate::error::Result;
use crate::image::JobId;
use crate::netlock::{self, Flow, Silence};
use crate::object::files::{Files, inet};

/// The silence on the job's connections with somebody outside while it is built, and they themselves.
#[derive(Debug)]
pub struct Outside {
    /// There are any.
    any: bool,
    silence: Option<Silence>,
    revived: inet::Revived,
}

impl Outside {
    /// Silences them, before there is a socket of them: who sent something to an address at which nobody is would be reset.
    pub fn hush(files: &Files, policy: inet::Policy) -> Self {
        let ends = inet::Connections::outside(files).into_iter();
        let flows: Vec<Flow> = ends.map(|(local, remote)| Flow { local, remote }).collect();
        let any = !flows.is_empty();
        let silence = if !any || policy != inet::Policy::Keep {
            None
        } else {
            let unsure =
                |e: &netlock::Error| log::warn!("the job's TCP connections may be reset while it is restored: {e}");
            Silence::begin(None, &flows).inspect_err(unsure).ok()
        };
        Self { any, silence, revived: inet::Revived::default() }
    }

    /// With the sockets that were made.
    pub fn with(self, revived: inet::Revived) -> Self {
        Self { revived, ..self }
    }

    /// Ends the silence, also the one that the killing of the job has left, and has the connections go on. To be called when the
    /// job is about to run. What is left of the silence takes a moment to drop.
    ///
    /// # Errors
    /// When one cannot go on.
    pub fn go(mut self, job: JobId) -> Result<Option<Silence>> {
        if !self.any {
            return Ok(None);
        }
        match netlock::lift(None, job) {
            Ok(lifted) => log::debug!("{lifted} connections were silent until now"),
            Err(e) if self.silence.is_some() => return Err(e.into()),
            // Where there can be no silence, there is none.
            Err(e) => log::debug!("{e}"),
        }
        self.silence.as_mut().map_or(Ok(()), Silence::end)?;
        self.revived.go()?;
        Ok(self.silence)
    }
}
