//! The threads that carry traffic: each a single-threaded runtime for local tasks, and a state of its own.
//!
//! **Nothing migrates**: a task lives and dies on the worker that spawned it, so what it holds need not be `Send`.
//! A panic ends the task that panicked and nothing else (see [`crate::process::install_panic_hook`]).

use std::rc::Rc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};

/// N workers, each with a state `S` that never leaves its thread.
#[derive(Debug)]
pub struct Workers<S> {
    workers: Vec<Worker<S>>,
}

/// What a worker is asked to do. Runs inside the worker's runtime, so it may call `spawn_local`.
type Command<S> = Box<dyn FnOnce(&Rc<S>) + Send>;

#[derive(Debug)]
struct Worker<S> {
    commands: mpsc::Sender<Command<S>>,
    thread: JoinHandle<()>,
}

/// Why a command could not be given or was not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WorkerError {
    #[error("worker {0} does not exist")]
    NoSuchWorker(usize),
    #[error("worker {0} has ended")]
    Ended(usize),
    #[error("worker {0} failed to carry out the command")]
    Panicked(usize),
}

/// Why the workers could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start worker {index}: {source}")]
pub struct StartError {
    pub index: usize,
    pub source: std::io::Error,
}

impl<S: 'static> Workers<S> {
    /// Starts `count` threads called `name-0` and so on; `init` makes the state on its thread, inside its runtime.
    ///
    /// # Errors
    /// The operating system refuses a thread or a reactor.
    pub fn start(
        count: usize,
        name: &str,
        init: impl Fn(usize) -> S + Send + Clone + 'static,
    ) -> Result<Self, StartError> {
        let workers = (0..count)
            .map(|index| Worker::start(index, name, init.clone()).map_err(|source| StartError { index, source }))
            .collect::<Result<_, _>>()?;
        Ok(Self { workers })
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Has worker `index` run `command` and waits for its value. Waits while the worker's queue (256) is full.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub async fn run<T: Send + 'static>(
        &self,
        index: usize,
        command: impl FnOnce(&Rc<S>) -> T + Send + 'static,
    ) -> Result<T, WorkerError> {
        let worker = self.workers.get(index).ok_or(WorkerError::NoSuchWorker(index))?;
        let (answer, answered) = oneshot::channel();
        let command: Command<S> = Box::new(move |state| {
            // Nobody may wait any more; the command was still carried out.
            drop(answer.send(command(state)));
        });
        worker.commands.send(command).await.map_err(|_| WorkerError::Ended(index))?;
        answered.await.map_err(|_| WorkerError::Panicked(index))
    }

    /// Has every worker run `command(index, state)`, all at once, and waits for all of them.
    ///
    /// # Errors
    /// The first worker's that failed; the others have carried the command out nevertheless.
    pub async fn run_all<T: Send + 'static>(
        &self,
        command: impl FnOnce(usize, &Rc<S>) -> T + Send + Clone + 'static,
    ) -> Result<Vec<T>, WorkerError> {
        let mut answers = Vec::with_capacity(self.workers.len());
        for (index, worker) in self.workers.iter().enumerate() {
            let (answer, answered) = oneshot::channel();
            let command = command.clone();
            let boxed: Command<S> = Box::new(move |state| {
                drop(answer.send(command(index, state)));
            });
            worker.commands.send(boxed).await.map_err(|_| WorkerError::Ended(index))?;
            answers.push(answered);
        }
        let mut values = Vec::with_capacity(answers.len());
        for (index, answered) in answers.into_iter().enumerate() {
            values.push(answered.await.map_err(|_| WorkerError::Panicked(index))?);
        }
        Ok(values)
    }

    /// Ends the workers: tasks that still run are dropped. Blocks until the threads are gone.
    pub fn stop(self) {
        let threads: Vec<_> = self.workers.into_iter().map(|worker| worker.thread).collect();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

impl<S: 'static> Worker<S> {
    fn start(index: usize, name: &str, init: impl Fn(usize) -> S + Send + 'static) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel(COMMAND_QUEUE);
        let (report, reported) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
            // Its tasks are scheduled by the runtime itself: a `LocalSet` inside another runtime would cost a second
            // queue and one more wake-up each time.
            let built = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            let (runtime, outcome) = match built {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Whoever starts us waits for it.
            if report.send(outcome).is_ok()
                && let Some(runtime) = runtime
            {
                runtime.block_on(serve(queue, index, init));
            }
        })?;
        // A thread that ends without a report has panicked.
        reported.recv().unwrap_or_else(|_| Err(std::io::Error::other("the thread has ended")))?;
        Ok(Self { commands, thread })
    }
}

/// Runs commands until every sender is gone.
async fn serve<S>(mut queue: mpsc::Receiver<Command<S>>, index: usize, init: impl Fn(usize) -> S) {
    let state = Rc::new(init(index));
    while let Some(command) = queue.recv().await {
        // The panic hook has logged and counted it; the worker goes on.
        drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| command(&state))));
    }
}

/// Commands are configuration changes: a few per push.
const COMMAND_QUEUE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn commands_run_on_the_workers_and_share_their_state() {
        let workers = Workers::start(3, "test", |index| Cell::new(index * 10)).unwrap();
        for _ in 0..5 {
            workers.run(2, |state| state.set(state.get() + 1)).await.unwrap();
        }
        let values = workers.run_all(|index, state| (index, state.get())).await.unwrap();
        assert_eq!(values, [(0, 0), (1, 10), (2, 25)], "each worker has its own state");
        let name = workers.run(1, |_| std::thread::current().name().map(str::to_owned)).await.unwrap();
        assert_eq!(name.as_deref(), Some("test-1"), "threads are named");
        assert_eq!(workers.run(3, |_| ()).await, Err(WorkerError::NoSuchWorker(3)), "there are three workers");
        workers.stop();
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_and_no_worker() {
        let workers = Workers::start(1, "panicky", |_| Cell::new(0)).unwrap();
        assert_eq!(workers.run(0, |_| assert!(std::hint::black_box(false))).await, Err(WorkerError::Panicked(0)));
        let (done, panicked) = oneshot::channel();
        workers
            .run(0, |state| {
                let state = Rc::clone(state);
                tokio::task::spawn_local(async move {
                    let task = tokio::task::spawn_local(async { assert!(std::hint::black_box(false)) });
                    state.set(1);
                    let _ = done.send(task.await.is_err());
                });
            })
            .await
            .unwrap();
        assert_eq!(panicked.await, Ok(true), "the task's panic is its own");
        assert_eq!(workers.run(0, |state| state.get()).await, Ok(1), "the worker still serves");
        workers.stop();
    }
}
