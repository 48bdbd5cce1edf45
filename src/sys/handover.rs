//! Hands a single value to another thread. A channel of std would add more than 10 KiB to the code of each program.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

enum Slot<T> {
    Empty,
    Filled(T),
    Abandoned,
}

struct Shared<T> {
    slot: Mutex<Slot<T>>,
    changed: Condvar,
}

/// Dropping it without a value lets the receiver return.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

pub(crate) struct Receiver<T>(Arc<Shared<T>>);

pub(crate) fn handover<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared { slot: Mutex::new(Slot::Empty), changed: Condvar::new() });
    (Sender(shared.clone()), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, Slot<T>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    pub fn send(self, value: T) {
        *self.0.lock() = Slot::Filled(value);
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut slot = self.0.lock();
        if matches!(*slot, Slot::Empty) {
            *slot = Slot::Abandoned;
        }
        self.0.changed.notify_all();
    }
}

impl<T> Receiver<T> {
    /// Waits for the value; `None` if there will be none.
    pub fn receive(self) -> Option<T> {
        let is_empty = |slot: &mut Slot<T>| matches!(slot, Slot::Empty);
        let mut slot = self.0.changed.wait_while(self.0.lock(), is_empty).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *slot, Slot::Abandoned) {
            Slot::Filled(value) => Some(value),
            Slot::Empty | Slot::Abandoned => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_or_its_absence_arrives_in_another_thread() {
        let (sender, receiver) = handover();
        let thread = std::thread::spawn(|| receiver.receive());
        sender.send(7);
        assert_eq!(thread.join().unwrap(), Some(7));
        let (sender, receiver) = handover::<i32>();
        let thread = std::thread::spawn(|| receiver.receive());
        drop(sender);
        assert_eq!(thread.join().unwrap(), None);
    }
}
