//! What is told once of each device.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

/// Devices that are remembered. When there are more, all are forgotten, and told of again.
const DEVICES: usize = 2_000;

/// Devices of which something was told, by address; whoever has many counts as one if its caller makes them one.
#[derive(Debug, Default)]
pub struct Once(Mutex<HashSet<IpAddr>>);

impl Once {
    /// Whether this is the first time.
    pub fn is_first(&self, device: IpAddr) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= DEVICES && !told.contains(&device) {
            told.clear();
        }
        told.insert(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_told_of_once_and_few_are_remembered() {
        let once = Once::default();
        let device = |number: u32| IpAddr::from(number.to_be_bytes());
        assert!(once.is_first(device(1)) && once.is_first(device(2)) && !once.is_first(device(1)));
        for number in 0..10 * DEVICES as u32 {
            once.is_first(device(number));
            assert!(once.0.lock().unwrap().len() <= DEVICES);
        }
        assert!(once.is_first(device(1)), "forgotten meanwhile");
    }
}
