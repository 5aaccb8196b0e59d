//! Group commit: one thread per shard turns what its devices admitted into log records.
//!
//! Actors push entries into a queue; while one append is on its way to the disk the next one gathers, so the
//! size of a commit follows the load. The position of an entry is known when it is pushed: positions are
//! consecutive and an append that fails is repeated, with the same position and the same bytes, until it
//! succeeds. So there is no "failed entry" to roll back: while the store is away nothing is acknowledged,
//! credits stay out, and sockets stand still.
//!
//! The committer also decides where barriers stand, because only it knows the order.
//!
//! All work is done by [`Committer::step`], which never waits: the thread ([`Committer::run`]) waits between steps,
//! and a simulation steps it by itself.

mod progress;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use device::entry::{Entry, LogBody, LogRecord, Partial};
use device::id::ShardId;
use device::schema::Catalog;
use device::seq::{Barrier, Position};
use device::time::Timestamp;
use parking_lot::{Condvar, Mutex};
use storage::durable::Durable;
use storage::log::ShardLog;
use tokio::sync::oneshot;
// A simulation's clock inside of its runtime, the machine's anywhere else.
use tokio::time::Instant;

pub use self::progress::Progress;
use crate::admission::Credit;
use crate::declared::{Declared, Switch};
use crate::message::{Outcome, Reply};
use crate::metrics::{Metrics, add};
use crate::rules::RuleBook;

/// When barriers are due.
#[derive(Debug, Clone)]
pub struct BarrierPolicy {
    /// A checkpoint at least this often while there is something new.
    pub checkpoint_every: Duration,
    /// A cut at least this often while there is something new.
    pub cut_every: Duration,
    /// A cut when this many bytes of log came since the last one.
    pub cut_bytes: u64,
    /// Checkpoints go on for so long after the last record, and after the start: that devices have fallen silent
    /// is to be seen in the log, too.
    pub settle: Duration,
}

/// Where a shard's log stands when its committer starts.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    /// Position of the last record.
    pub position: Position,
    /// Number of the last barrier.
    pub barrier: Barrier,
    /// Time of the last record.
    pub time: Timestamp,
    /// Whether records stand behind the last cut.
    pub uncut: bool,
}

/// Source of the log's time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

struct Queue {
    /// Position of the batch that gathers now.
    next: Position,
    entries: Vec<Entry>,
    replies: Vec<(Reply, Outcome)>,
    credits: Vec<Credit>,
    barriers: Vec<BarrierRequest>,
    partials: Vec<(Partial, Arc<AtomicBool>)>,
    stop: bool,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.replies.is_empty() && self.barriers.is_empty() && self.partials.is_empty()
    }
}

struct BarrierRequest {
    cut: bool,
    /// The version of the pipeline project that counts behind it.
    switch: Option<Switch>,
    done: oneshot::Sender<Barrier>,
}

/// The queue of one shard, and the steps that empty it.
pub struct Committer {
    shard: ShardId,
    queue: Mutex<Queue>,
    wake: Condvar,
    durable: AtomicU64,
    healthy: AtomicBool,
    /// Hears where another version of the project begins to count.
    book: OnceLock<Arc<RuleBook>>,
}

impl std::fmt::Debug for Committer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Committer").field("shard", &self.shard).field("durable", &self.durable).finish_non_exhaustive()
    }
}

/// What the thread works with.
pub struct Work {
    /// Where records go.
    pub log: Arc<dyn ShardLog>,
    /// Takes them once they are durable, waiting if it must; false: nobody consumes any more.
    pub consumer: Box<dyn Fn(Durable) -> bool + Send + Sync>,
    /// Time of records.
    pub clock: Clock,
    /// When barriers are due.
    pub policy: BarrierPolicy,
    /// Version of the pipeline project that counts at the start; see [`Committer::switch`].
    pub catalog: u64,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Called once when the log fails for good; the process has to end.
    pub failed: Box<dyn Fn(String) + Send + Sync>,
}

impl Committer {
    /// A committer that goes on after `start`; [`Committer::run`] is its thread.
    pub fn new(shard: ShardId, start: Start) -> Self {
        Self {
            shard,
            queue: Mutex::new(Queue {
                next: start.position.next(),
                entries: Vec::new(),
                replies: Vec::new(),
                credits: Vec::new(),
                barriers: Vec::new(),
                partials: Vec::new(),
                stop: false,
            }),
            wake: Condvar::new(),
            durable: AtomicU64::new(start.position.0),
            healthy: AtomicBool::new(true),
            book: OnceLock::new(),
        }
    }

    /// Tells `book` where another version of the project begins to count.
    pub(crate) fn tell(&self, book: Arc<RuleBook>) {
        let _ = self.book.set(book);
    }

    /// Everything up to here is durable.
    pub fn durable(&self) -> Position {
        Position(self.durable.load(Ordering::Acquire))
    }

    /// False while the log refuses appends.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Adds entries to the commit that gathers now and returns its position. The reply goes out when it is durable.
    pub fn push(
        &self,
        entries: impl IntoIterator<Item = Entry>,
        reply: Option<(Reply, Outcome)>,
        credit: Credit,
    ) -> Position {
        #[cfg(feature = "planted")]
        let credit = if device::planted::is("credit-early") { Credit::free() } else { credit };
        let mut queue = self.queue.lock();
        let idle = queue.entries.is_empty() && queue.replies.is_empty();
        queue.entries.extend(entries);
        queue.replies.extend(reply);
        queue.credits.push(credit);
        let position = queue.next;
        drop(queue);
        if idle {
            self.wake.notify_one();
        }
        position
    }

    /// Adds what a shard contributes to a pipeline; true once it is durable.
    pub fn push_partial(&self, partial: Partial) -> Arc<AtomicBool> {
        let durable = Arc::new(AtomicBool::new(false));
        self.queue.lock().partials.push((partial, durable.clone()));
        self.wake.notify_one();
        durable
    }

    /// Replies when everything pushed before is durable.
    pub fn push_reply(&self, reply: Reply, outcome: Outcome) {
        self.push([], Some((reply, outcome)), Credit::free());
    }

    /// The position that everything pushed before has at most. Empty commits are not written, so this position
    /// may never become durable by itself; see [`Committer::settled`].
    pub fn gathering(&self) -> Position {
        self.queue.lock().next
    }

    /// Whether nothing pushed before `position` gathers or is on its way.
    pub fn settled(&self, position: Position) -> bool {
        let queue = self.queue.lock();
        let below = queue.next.0.saturating_sub(1);
        self.durable() >= position || (queue.entries.is_empty() && self.durable().0 >= below)
    }

    /// Asks for a barrier; its number comes when it is durable.
    pub fn barrier(&self, cut: bool) -> oneshot::Receiver<Barrier> {
        self.ask(cut, None)
    }

    /// Goes over to another version of the pipeline project: a barrier that ends the old one with a cut, and right
    /// behind it, with nothing between them, one that names the new. The number is that of the second.
    ///
    /// With `declares`, devices go over to these streams at the same position.
    pub fn switch(&self, project: u64, declares: Option<(Declared, Arc<Catalog>)>) -> oneshot::Receiver<Barrier> {
        self.ask(true, Some(Switch { project, declares }))
    }

    fn ask(&self, cut: bool, switch: Option<Switch>) -> oneshot::Receiver<Barrier> {
        let (done, receiver) = oneshot::channel();
        self.queue.lock().barriers.push(BarrierRequest { cut, switch, done });
        self.wake.notify_one();
        receiver
    }

    /// Ends the thread after what gathers now is committed, or at once if the log is away.
    pub fn stop(&self) {
        self.queue.lock().stop = true;
        self.wake.notify_one();
    }

    /// The thread: returns after [`Committer::stop`], or when nobody consumes any more.
    pub fn run(&self, start: Start, work: &Work) {
        let mut progress = Progress::new(start);
        loop {
            match self.step(&mut progress, work) {
                Step::Worked => {}
                Step::Idle(patience) => {
                    let mut queue = self.queue.lock();
                    if queue.is_empty() && !queue.stop {
                        self.wake.wait_for(&mut queue, patience);
                    }
                }
                Step::Away(pause) => std::thread::sleep(pause),
                Step::Ended => return,
            }
        }
    }

    /// Does what can be done now: at most one append.
    pub fn step(&self, progress: &mut Progress, work: &Work) -> Step {
        let pending = match progress.pending.take() {
            Some(pending) => pending,
            None => match self.next(progress, work) {
                Ok(pending) => pending,
                Err(step) => return step,
            },
        };
        self.append(pending, progress, work)
    }

    /// The next record to append, or what to do instead.
    fn next(&self, progress: &mut Progress, work: &Work) -> Result<Pending, Step> {
        if let Some((position, partial, durable)) = progress.partials_next.pop_front() {
            let record = LogRecord { time: progress.time, body: LogBody::Partial(partial) };
            return Ok(Pending::new(position, record, Then::Partial(durable), progress));
        }
        if let Some((position, cut, requests)) = progress.barrier_next.take() {
            return Ok(self.barrier_record(position, cut, requests, progress, work));
        }
        if let Some((position, project, requests)) = progress.switch_next.take() {
            progress.project = Some(project);
            if let Some(book) = self.book.get() {
                book.note(position, project);
            }
            return Ok(self.barrier_record(position, true, requests, progress, work));
        }
        let Some(taken) = self.take(progress, work) else {
            let stop = self.queue.lock().stop;
            return Err(if stop { Step::Ended } else { Step::Idle(progress.wait(&work.policy)) });
        };
        progress.time = progress.time.max((work.clock)());
        let (switching, others) = taken.requests.into_iter().partition(|request| request.switch.is_some());
        progress.partials_next = taken.partials;
        progress.barrier_next = taken.barrier.map(|(position, cut)| (position, cut, others));
        progress.switch_next = taken.switch.map(|(position, project)| (position, project, switching));
        let Some(position) = taken.batch else {
            // Nothing new: whatever these replies wait for was committed before.
            for (reply, outcome) in taken.replies {
                reply.send(outcome);
            }
            return Err(Step::Worked);
        };
        let record = LogRecord { time: progress.time, body: LogBody::Batch(taken.entries) };
        let then = Then::Batch { replies: taken.replies, credits: taken.credits };
        Ok(Pending::new(position, record, then, progress))
    }

    fn barrier_record(
        &self,
        position: Position,
        cut: bool,
        requests: Vec<BarrierRequest>,
        progress: &mut Progress,
        work: &Work,
    ) -> Pending {
        progress.barrier = progress.barrier.next();
        let body =
            LogBody::Barrier { barrier: progress.barrier, cut, catalog: progress.project.unwrap_or(work.catalog) };
        let record = LogRecord { time: progress.time, body };
        Pending::new(position, record, Then::Barrier { cut, requests }, progress)
    }

    /// Takes what there is to do out of the queue, positions assigned.
    fn take(&self, progress: &Progress, work: &Work) -> Option<Taken> {
        // Before the queue, as devices do it.
        let switch_of = |request: &BarrierRequest| request.switch.as_ref().and_then(Switch::declared);
        let declared = self.queue.lock().barriers.iter().rev().find_map(switch_of);
        let mut declared = declared.as_ref().map(|declared| declared.write());
        let mut queue = self.queue.lock();
        let due = progress.due((work.clock)(), &work.policy);
        let asked = !queue.barriers.is_empty();
        if queue.is_empty() && due.is_none() {
            return None;
        }
        let entries = take_all(&mut queue.entries);
        let batch = (!entries.is_empty()).then_some(queue.next);
        if batch.is_some() {
            queue.next = queue.next.next();
        }
        let mut partials = VecDeque::with_capacity(queue.partials.len());
        for (partial, durable) in std::mem::take(&mut queue.partials) {
            partials.push_back((queue.next, partial, durable));
            queue.next = queue.next.next();
        }
        // A change of streams that was asked for in this very moment waits for the next step.
        let ready = |request: &BarrierRequest| declared.is_some() || switch_of(request).is_none();
        let (requests, later): (Vec<_>, Vec<_>) = std::mem::take(&mut queue.barriers).into_iter().partition(ready);
        queue.barriers = later;
        // Rows that come with this very batch make a cut worth while too.
        let barrier = (due.is_some() || asked).then(|| {
            let at = queue.next;
            queue.next = at.next();
            (at, due == Some(true) || requests.iter().any(|r| r.cut))
        });
        // Of several versions that were asked for in the meantime, the last one counts.
        let switch = requests.iter().rev().find_map(|request| request.switch.as_ref()).map(|switch| {
            let at = queue.next;
            queue.next = at.next();
            switch.declare(declared.as_mut());
            (at, switch.project)
        });
        Some(Taken {
            batch,
            entries,
            replies: take_all(&mut queue.replies),
            credits: take_all(&mut queue.credits),
            partials,
            barrier,
            switch,
            requests,
        })
    }

    /// Tries to append a record; it is tried again by the next step until that succeeds.
    fn append(&self, mut pending: Pending, progress: &mut Progress, work: &Work) -> Step {
        #[cfg(feature = "planted")]
        if let (true, Then::Batch { replies, .. }) = (device::planted::is("ack-before-durable"), &mut pending.then) {
            replies.drain(..).for_each(|(reply, outcome)| reply.send(outcome));
        }
        #[cfg(feature = "planted")]
        if device::planted::is("durable-before-append") {
            self.durable.store(pending.position.0, Ordering::Release);
        }
        match work.log.append(self.shard, pending.position, &pending.bytes) {
            Ok(()) => {}
            Err(error) if !error.is_retriable() => {
                // Another writer, or a damaged log: to go on would acknowledge what may not be there.
                tracing::error!(shard = %self.shard, %error, "the log cannot be written any more");
                self.healthy.store(false, Ordering::Relaxed);
                (work.failed)(error.to_string());
                return Step::Ended;
            }
            Err(error) => {
                add(&work.metrics.commit_failures, 1);
                if self.healthy.swap(false, Ordering::Relaxed) {
                    tracing::error!(shard = %self.shard, %error, "the log refuses appends; nothing is acknowledged until it takes them again");
                }
                if self.queue.lock().stop {
                    tracing::error!(shard = %self.shard, "stopped while the log was away; what was not acknowledged is dropped");
                    return Step::Ended;
                }
                let pause = pending.pause;
                pending.pause = (pause * 2).min(LONGEST_PAUSE);
                progress.pending = Some(pending);
                return Step::Away(pause);
            }
        }
        if !self.healthy.swap(true, Ordering::Relaxed) {
            tracing::info!(shard = %self.shard, "the log takes appends again");
        }
        add(&work.metrics.log_bytes, pending.bytes.len() as u64);
        progress.bytes_since_cut += pending.bytes.len() as u64;
        let Pending { position, bytes, record, then, .. } = pending;
        // The log keeps none of it, so this is the same memory again; a copy would be right, too.
        progress.buffer = Vec::from(bytes);
        if progress.buffer.capacity() > LARGEST_BUFFER {
            progress.buffer = Vec::new();
        }
        self.durable.store(position.0, Ordering::Release);
        let going = match then {
            Then::Batch { replies, credits } => {
                progress.last_batch = Instant::now();
                progress.fresh = true;
                progress.uncut = true;
                add(&work.metrics.commits, 1);
                for (reply, outcome) in replies {
                    reply.send(outcome);
                }
                #[cfg(feature = "planted")]
                if device::planted::is("credit-never") {
                    std::mem::forget(credits.clone());
                }
                let hold = Some(Box::new(credits) as Box<dyn std::any::Any + Send>);
                (work.consumer)(Durable { position, record, hold })
            }
            Then::Partial(durable) => {
                progress.fresh = true;
                progress.uncut = true;
                durable.store(true, Ordering::Release);
                (work.consumer)(Durable { position, record, hold: None })
            }
            Then::Barrier { cut, requests } => {
                progress.passed(cut);
                let going = (work.consumer)(Durable { position, record, hold: None });
                for request in requests.into_iter().take_while(|_| going) {
                    // Whoever asked may have gone away; the barrier stands all the same.
                    let _ = request.done.send(progress.barrier);
                }
                going
            }
        };
        if going { Step::Worked } else { Step::Ended }
    }
}

/// What a step of the committer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more to do.
    Worked,
    /// Nothing: there is nothing to do for so long, unless something is pushed.
    Idle(Duration),
    /// The log refuses appends: try again after this pause.
    Away(Duration),
    /// It has ended.
    Ended,
}

/// Longest pause before an append that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Takes everything and leaves as much room: the next commit is likely to be as large as this one.
fn take_all<T>(from: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(from.len());
    std::mem::replace(from, room)
}

/// A commit after a long flood must not keep its buffer for ever.
const LARGEST_BUFFER: usize = 8 << 20;

struct Taken {
    batch: Option<Position>,
    entries: Vec<Entry>,
    replies: Vec<(Reply, Outcome)>,
    credits: Vec<Credit>,
    partials: VecDeque<(Position, Partial, Arc<AtomicBool>)>,
    barrier: Option<(Position, bool)>,
    switch: Option<(Position, u64)>,
    requests: Vec<BarrierRequest>,
}

/// A record on its way into the log.
struct Pending {
    position: Position,
    bytes: Bytes,
    record: LogRecord,
    then: Then,
    /// Before the next try, should this one fail.
    pause: Duration,
}

/// What follows when a record is durable.
enum Then {
    Batch { replies: Vec<(Reply, Outcome)>, credits: Vec<Credit> },
    Partial(Arc<AtomicBool>),
    Barrier { cut: bool, requests: Vec<BarrierRequest> },
}

impl Pending {
    fn new(position: Position, record: LogRecord, then: Then, progress: &mut Progress) -> Self {
        let mut buffer = std::mem::take(&mut progress.buffer);
        buffer.clear();
        record.encode(&mut buffer);
        Self { position, bytes: Bytes::from(buffer), record, then, pause: Duration::from_millis(50) }
    }
}
