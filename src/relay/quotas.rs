//! What each device has used of `messages_per_device` and `recipients_per_device`.
//!
//! A message counts from its MAIL on, so that parallel sessions cannot send more than one; what is not accepted in the
//! end is given back.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::{
    config::Limits,
    policy::quota::{Counted, Exceeded, Quotas},
};

/// What all devices have used.
#[derive(Debug)]
pub struct DeviceQuotas {
    born: Instant,
    messages: Mutex<Quotas>,
    recipients: Mutex<Quotas>,
}

/// What one transaction uses; it is given back when this is dropped.
#[derive(Debug)]
pub struct Used {
    quotas: Arc<DeviceQuotas>,
    device: Arc<str>,
    message: Option<Counted>,
    recipients: Vec<Counted>,
}

impl DeviceQuotas {
    /// Nobody has used anything.
    pub fn new(limits: &Limits) -> Self {
        Self {
            born: Instant::now(),
            messages: Mutex::new(Quotas::new(limits.messages_per_device)),
            recipients: Mutex::new(Quotas::new(limits.recipients_per_device)),
        }
    }

    /// Counts a message of a device.
    pub fn message(self: &Arc<Self>, device: &Arc<str>) -> Result<Used, Exceeded> {
        let message = lock(&self.messages).count(device, self.born.elapsed())?;
        Ok(Used {
            quotas: Arc::clone(self),
            device: Arc::clone(device),
            message: Some(message),
            recipients: Vec::new(),
        })
    }
}

impl Used {
    /// Counts a recipient.
    pub fn recipient(&mut self) -> Result<(), Exceeded> {
        let now = self.quotas.born.elapsed();
        self.recipients.push(lock(&self.quotas.recipients).count(&self.device, now)?);
        Ok(())
    }

    /// The last recipient was refused.
    pub fn recipient_refused(&mut self) {
        if let Some(counted) = self.recipients.pop() {
            lock(&self.quotas.recipients).give_back(&self.device, counted);
        }
    }

    /// The message was accepted: it counts.
    pub fn keep(mut self) {
        self.message = None;
        self.recipients.clear();
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        if let Some(counted) = self.message {
            lock(&self.quotas.messages).give_back(&self.device, counted);
        }
        while !self.recipients.is_empty() {
            self.recipient_refused();
        }
    }
}

fn lock(mutex: &Mutex<Quotas>) -> MutexGuard<'_, Quotas> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
