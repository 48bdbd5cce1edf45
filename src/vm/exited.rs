//! The exit of a VM as a future.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use crate::error::Error;
use crate::exit::Exit;
use crate::runtime::exit_wakers::{SharedWaker, wake_at_exit};
use crate::vm::{Handle, Vm, exit_fd};

/// A future that completes when the VM has exited, from [`Vm::exited`], which has an example. Any async runtime can poll it.
/// It can be dropped at any time.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Exited {
    vm: Vm,
    waker: Option<SharedWaker>,
}

/// # Wait for the exit, async
impl Vm {
    /// Returns a future that completes when the VM has exited. It works with any async runtime. One thread serves the futures
    /// of all VMs.
    ///
    /// ```
    /// # mod here { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/doc/here.rs")); }
    /// # let _here = here::running();
    /// async fn report(vm: hyperkit::Vm) {
    ///     println!("the VM {}", vm.exited().await);
    /// }
    /// # let vm = hyperkit::HyperKit::from_state("vm")?.vm()?.ok_or("the VM does not run")?;
    /// # vm.kill()?; // so that it exits
    /// # here::block_on(report(vm));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "async")]
    #[doc(alias = "tokio")]
    #[doc(alias = "future")]
    pub fn exited(&self) -> Exited {
        Exited { vm: self.clone(), waker: None }
    }
}

impl Future for Exited {
    type Output = Exit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Exit> {
        let this = &mut *self;
        let waker = this.waker.get_or_insert_with(|| Arc::new(Mutex::new(context.waker().clone())));
        waker.lock().unwrap_or_else(PoisonError::into_inner).clone_from(context.waker());
        let exit = match &this.vm.0.process {
            Handle::Child(child) => child.poll_exit(waker),
            Handle::Found(_) => {
                let exit = this.vm.try_wait();
                if exit.is_none() && Arc::weak_count(waker) == 0 {
                    let watched = exit_fd(&this.vm.0.process)
                        .and_then(|exit| wake_at_exit(exit, waker).map_err(Error::io("watch", "a process")));
                    if watched.is_err() {
                        // Without a descriptor or thread to wait with, the runtime has to poll again.
                        this.waker = None;
                        context.waker().wake_by_ref();
                    }
                }
                exit
            }
        };
        exit.map_or(Poll::Pending, Poll::Ready)
    }
}
