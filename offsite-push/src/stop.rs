//! Why a child was ended before it had done its work, and the error that this is.

use common::fault::Fault;

use crate::lease_keeper;
use crate::link::Silence;
use crate::siblings::{Limit, Siblings};

/// Why a child was ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// We were asked to stop.
    Signal(i32),
    /// Nothing moved any more.
    Silent(Silence),
    /// Another machine has the container.
    Lost,
    /// Its own limit.
    Limit(Limit),
}

impl Siblings<'_> {
    /// The error that ending a child early is.
    pub(crate) fn stopped(&self, stop: Stop, name: &str) -> anyhow::Error {
        match stop {
            Stop::Signal(signal) => Fault::interrupted(signal).into(),
            Stop::Lost => lease_keeper::lost(),
            Stop::Silent(place) => self.silence(name, place),
            Stop::Limit(Limit::Time(limit)) => {
                Fault::failed(format!("{name} did not end within {limit:?}")).into()
            }
            Stop::Limit(Limit::Rest(limit)) => {
                Fault::failed(format!("{name} got nowhere for {limit:?} and was ended")).into()
            }
        }
    }

    fn silence(&self, name: &str, place: Silence) -> anyhow::Error {
        let (far, patience) = (self.settings.far_name(), self.settings.patience);
        if place == Silence::Here {
            return Fault::unavailable(format!("{name} got nowhere for {patience:?} and was ended; {far} answers"))
                .hint("does the disk of the store still answer? was a process stopped? The next push goes on from here")
                .into();
        }
        Fault::unavailable(format!("{far} has not answered for {patience:?}: {name} was ended"))
            .hint("does S3 still serve its disk? The next push goes on from here")
            .into()
    }
}
