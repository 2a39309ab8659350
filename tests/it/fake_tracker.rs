//! A tracker at the level of frames, which answers as a test says, or not at all, and can be killed
//! without a word.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use mtq::clock;
use mtq::id::{GroupId, MembershipId};
use mtq::limits::{MAX_FRAME_LEN, MAX_HELLO_LEN};
use mtq::name::GroupName;
use mtq::peer_id::PeerId;
use mtq::ticket::{Holder, Ticket};
use mtq::tracker::greeting::{Hello, Welcome};
use mtq::tracker::message::{Answer, Reply, Request};
use mtq::tracker::push::Push;
use mtq::tracker::refusal::Refusal;
use mtq::tracker_link::TrackerLink;
use mtq::transport::connection::Connection;
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{read_frame, write_frame};
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{broadcast, watch};
use tokio_util::task::TaskTracker;

use crate::net::{loopback, soon, user};

/// The group that tickets are for.
pub const GROUP: GroupId = GroupId([7; 16]);

/// What to answer; nothing leaves the request unanswered for ever.
pub type Answers = fn(&Request) -> Option<Result<Reply, Refusal>>;

/// Answers whoever logs in by key as bob, and nothing else.
pub fn mute(request: &Request) -> Option<Result<Reply, Refusal>> {
    match request {
        Request::LoginByKey => Some(Ok(Reply::LoggedIn { user: user("bob") })),
        _ => None,
    }
}

/// The same, gives tickets for one group under any name, and says done to everything else.
pub fn willing(request: &Request) -> Option<Result<Reply, Refusal>> {
    mute(request).or(Some(Ok(Reply::Done)))
}

/// What a fake tracker saw.
struct Seen {
    identity: Arc<Identity>,
    answers: Answers,
    pushes: broadcast::Sender<Push>,
    requests: watch::Sender<Vec<Request>>,
    connections: watch::Sender<usize>,
    hellos: Mutex<Vec<Hello>>,
    tasks: TaskTracker,
}

/// The fake, on threads of its own.
pub struct FakeTracker {
    pub identity: Arc<Identity>,
    pub address: SocketAddr,
    seen: Arc<Seen>,
    runtime: Option<Runtime>,
}

impl FakeTracker {
    pub fn start(answers: Answers) -> Self {
        Self::start_as(Arc::new(Identity::generate()), loopback(), answers)
    }

    /// With this identity at this address, as soon as that is free.
    pub fn start_as(identity: Arc<Identity>, address: SocketAddr, answers: Answers) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let entered = runtime.enter();
        let endpoint = loop {
            match Endpoint::bind(identity.clone(), address, &[Alpn::Tracker]) {
                Ok(endpoint) => break endpoint,
                Err(error) => assert_ne!(address.port(), 0, "{error}"),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        drop(entered);
        let address = endpoint.local_address().expect("an address");
        let seen = Arc::new(Seen {
            identity: identity.clone(),
            answers,
            pushes: broadcast::channel(64).0,
            requests: watch::channel(Vec::new()).0,
            connections: watch::channel(0).0,
            hellos: Mutex::default(),
            tasks: TaskTracker::new(),
        });
        let accepting = seen.clone();
        seen.tasks.spawn_on(
            async move {
                while let Some(incoming) = endpoint.accept(100, || {}).await {
                    let Some(connection) = incoming.finish().await else { continue };
                    accepting.tasks.spawn(serve(accepting.clone(), connection));
                }
            },
            runtime.handle(),
        );
        Self { identity, address, seen, runtime: Some(runtime) }
    }

    pub fn peer_id(&self) -> PeerId {
        self.identity.peer_id()
    }

    pub fn link(&self) -> TrackerLink {
        TrackerLink::new(self.address, self.peer_id())
    }

    /// Pushes to every client connected.
    pub fn push(&self, push: Push) {
        self.seen.pushes.send(push).expect("somebody hears");
    }

    /// Waits until so many clients have ever been welcomed.
    pub async fn welcomed(&self, count: usize) {
        let mut connections = self.seen.connections.subscribe();
        let enough = connections.wait_for(|connections| *connections >= count);
        soon("a client", enough).await.expect("living");
    }

    /// Waits until a request came that is `wanted`, and returns it.
    pub async fn asked(&self, what: &str, wanted: impl Fn(&Request) -> bool) -> Request {
        let mut requests = self.seen.requests.subscribe();
        let asked = requests.wait_for(|requests| requests.iter().any(&wanted));
        let asked = soon(what, asked).await.expect("living");
        asked.iter().find(|request| wanted(request)).cloned().expect("there")
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.seen.requests.borrow().clone()
    }

    /// All hellos so far.
    pub fn hellos(&self) -> Vec<Hello> {
        self.seen.hellos.lock().expect("whole").clone()
    }

    /// Ends it at once, without a word to anybody.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for FakeTracker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn ticket(identity: &Identity, group: &GroupName, device: PeerId) -> Reply {
    let holder = Holder {
        peer_id: device,
        user: user("bob"),
        membership: MembershipId([3; 16]),
        group: GROUP,
        group_name: group.clone(),
        offline_grace: 60,
    };
    let sign = |message: &[u8]| identity.sign(message);
    let now = clock::now();
    let ticket = Ticket::sign(holder, now, now, identity.public_key(), &sign);
    Reply::Ticket { group: GROUP, ticket }
}

async fn serve(seen: Arc<Seen>, connection: Connection) -> Option<()> {
    let mut stream = connection.accept_control().await.ok()?;
    let hello = read_frame(&mut stream, MAX_HELLO_LEN).await.ok()?;
    seen.hellos.lock().expect("whole").push(hello);
    let mut control = connection.open_control().await.ok()?;
    let mut pushes = seen.pushes.subscribe();
    let welcome = Welcome {
        features: 0,
        agent: "fake".to_owned(),
        time: clock::now(),
        observed: connection.remote_address(),
        extensions: Vec::new(),
    };
    write_frame(&mut control, &welcome).await.ok()?;
    seen.connections.send_modify(|count| *count += 1);
    // Streams that are not answered stay open.
    let mut unanswered = Vec::new();
    loop {
        tokio::select! {
            push = pushes.recv() => write_frame(&mut control, &push.ok()?).await.ok()?,
            streams = connection.accept_bi() => {
                let (mut send, mut recv) = streams.ok()?;
                let request: Request = read_frame(&mut recv, MAX_FRAME_LEN).await.ok()?;
                // An answer may take its time; acknowledgements go out meanwhile.
                let (answers, asked) = (seen.answers, request.clone());
                let answer = tokio::task::spawn_blocking(move || answers(&asked)).await;
                let mut answer = answer.expect("no panic");
                if let (Request::Ticket { group }, Some(Ok(reply))) = (&request, &mut answer) {
                    *reply = ticket(&seen.identity, group, connection.remote());
                }
                seen.requests.send_modify(|requests| requests.push(request));
                match answer {
                    None => unanswered.push((send, recv)),
                    Some(answer) => {
                        let answer = answer.map(|reply| Answer { reply, written: None });
                        write_frame(&mut send, &answer).await.ok()?;
                        let _ = send.finish();
                    }
                }
            }
        }
    }
}
