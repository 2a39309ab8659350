//! One side of a transfer that is nothing but a transfer: a process that serves bytes, or one that
//! fetches them.
//!
//! The transport is mtq's own endpoint, with its settings, on a current_thread runtime that also has
//! every task that reads or writes streams; disk and hashes are on threads of their own. What mtq does
//! besides is not here: no tickets, no scheduler, no BLAKE3, no resume record, no sync, no whole-file
//! hash. What is left is what a transfer costs that checks pieces.

use std::fs::{self, File};
use std::io::{IoSlice, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use aws_lc_rs::digest;
use bytes::Bytes;
use mtq::limits::{MAX_REQUEST_LEN, PEER_WINDOW, PIECE_LEN};
use mtq::transport::connection::{Connection, RecvStream, SendStream};
use mtq::transport::endpoint::Endpoint;
use mtq::transport::frame::{read_frame, write_frame};
use mtq::transport::identity::Identity;
use mtq::transport::tls::Alpn;
use mtq::transport::tuning::{Mtu, Tuning};
use serde::{Deserialize, Serialize};
use sha1::Digest as _;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// Bytes of a piece, as lengths and offsets are counted here.
pub const PIECE: u64 = PIECE_LEN as u64;

/// Pieces that wait for the thread that reads.
const READS: usize = 64;

/// Pieces that wait for a thread that writes; whoever has another one waits.
const WAITING: usize = 4;

/// What a process is started for, as JSON in its argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Side {
    /// Says where it is, and serves until standard input ends.
    Serve(Serve),
    /// Connects, then fetches all bytes for every line on standard input, which says where to, and says
    /// when it has them.
    Fetch(Fetch),
}

/// Where bytes come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// The largest datagram.
    pub mtu: String,
    /// The file; nothing for bytes from memory.
    pub source: Option<PathBuf>,
    /// How it is read and sent.
    pub how: How,
}

/// Where bytes go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// The largest datagram.
    pub mtu: String,
    /// Of the side that serves.
    pub address: SocketAddr,
    /// Its peer id.
    pub peer: String,
    /// How many there are.
    pub len: u64,
    /// The SHA-1 of every piece, one after the other; nothing where bytes are dropped.
    pub hashes: Option<PathBuf>,
    /// How they are asked for, hashed and written.
    pub how: How,
}

/// Ways of reading pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reading {
    /// By a thread of its own.
    Thread,
    /// By the thread of the transport.
    Inline,
}

/// What may be done one way or another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct How {
    /// Pieces asked for at once, each on a stream of its own; with 0 all bytes come on one stream.
    pub depth: usize,
    /// Whether all pieces asked for advance together, and not one after the other.
    pub together: bool,
    /// Where pieces are read.
    pub reading: Reading,
    /// Threads that hash and write pieces.
    pub writers: usize,
    /// Whether chunks are copied into one buffer a piece as they come.
    pub copied: bool,
    /// Whether SHA-1 is that of the crate `sha1`.
    pub sha1_crate: bool,
}

/// What is asked for on a stream.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Ask {
    offset: u64,
    len: u64,
    /// Its place among all: what was asked for earlier goes first.
    order: i32,
}

impl Side {
    /// Does what it is for; returns at its end.
    pub fn run(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            match self {
                Self::Serve(serve) => serve.run().await,
                Self::Fetch(fetch) => fetch.run().await,
            }
        });
    }
}

fn endpoint(mtu: &str) -> Endpoint {
    let tuning = Tuning { max_mtu: mtu.parse::<Mtu>().expect("an MTU"), ..Tuning::default() };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let identity = Arc::new(Identity::generate());
    Endpoint::bind_tuned(identity, address, &[Alpn::Peer], tuning).expect("bound")
}

/// A line for whoever started this process.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody listens");
}

impl Serve {
    async fn run(self) {
        let endpoint = endpoint(&self.mtu);
        let address = endpoint.local_address().expect("an address");
        let source = match (&self.source, self.how.reading) {
            (None, _) => Source::Memory(Bytes::from(vec![7; PIECE_LEN as usize])),
            (Some(path), Reading::Inline) => Source::Inline(Pieces::open(path)),
            (Some(path), Reading::Thread) => Source::Thread(read_on_a_thread(Pieces::open(path))),
        };
        say(&format!("{address} {}", endpoint.identity().peer_id()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Some(incoming) = endpoint.accept(16, || {}).await {
                let source = source.clone();
                connections.spawn(async move {
                    let connection = incoming.finish().await.expect("a handshake");
                    serve(&connection, source).await;
                });
            }
        });
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    }
}

/// Serves every stream of a connection until it is gone.
async fn serve(connection: &Connection, source: Source) {
    let mut streams = JoinSet::new();
    while let Ok((send, recv)) = connection.accept_bi().await {
        while streams.try_join_next().is_some() {}
        streams.spawn(answer(send, recv, source.clone()));
    }
}

async fn answer(mut send: SendStream, mut recv: RecvStream, source: Source) {
    let ask: Ask = read_frame(&mut recv, MAX_REQUEST_LEN).await.expect("a request");
    send.set_priority(-ask.order).expect("open");
    let (mut offset, end) = (ask.offset, ask.offset + ask.len);
    while offset < end {
        let len = PIECE.min(end - offset);
        let bytes = source.read(offset, len as usize).await;
        send.write_chunk(bytes).await.expect("taken");
        offset += len;
    }
    send.finish().expect("open");
}

/// Where bytes to be sent come from.
#[derive(Clone)]
enum Source {
    Memory(Bytes),
    Inline(Pieces),
    Thread(mpsc::Sender<Read>),
}

/// Bytes that are wanted, and who wants them.
type Read = (u64, usize, oneshot::Sender<Bytes>);

impl Source {
    async fn read(&self, offset: u64, len: usize) -> Bytes {
        match self {
            Self::Memory(bytes) => bytes.slice(..len),
            Self::Inline(pieces) => pieces.read(offset, len),
            Self::Thread(reads) => {
                let (wanted, read) = oneshot::channel();
                reads.send((offset, len, wanted)).await.expect("the reader runs");
                read.await.expect("read")
            }
        }
    }
}

fn read_on_a_thread(pieces: Pieces) -> mpsc::Sender<Read> {
    let (reads, mut wanted) = mpsc::channel::<Read>(READS);
    thread::spawn(move || {
        while let Some((offset, len, to)) = wanted.blocking_recv() {
            // Whoever wanted it may be gone.
            let _ = to.send(pieces.read(offset, len));
        }
    });
    reads
}

/// A file, and buffers to read it into, which are used again.
#[derive(Clone)]
struct Pieces {
    file: Arc<File>,
    free: Pool,
}

impl Pieces {
    fn open(path: &Path) -> Self {
        Self { file: Arc::new(File::open(path).expect("the source")), free: Pool::default() }
    }

    fn read(&self, offset: u64, len: usize) -> Bytes {
        let mut lent = self.free.lend(len);
        self.file.read_exact_at(&mut lent.bytes, offset).expect("read");
        Bytes::from_owner(lent)
    }
}

/// Buffers of one piece.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer that goes back into its pool.
struct Lent {
    bytes: Vec<u8>,
    pool: Pool,
}

impl Pool {
    /// A buffer of `len` bytes, whatever they are.
    fn lend(&self, len: usize) -> Lent {
        let free = self.0.lock().expect("no panic").pop();
        let mut bytes = free.unwrap_or_else(|| Vec::with_capacity(PIECE_LEN as usize));
        bytes.resize(len, 0);
        Lent { bytes, pool: self.clone() }
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.0.lock().expect("no panic").push(std::mem::take(&mut self.bytes));
    }
}

impl Fetch {
    async fn run(self) {
        let endpoint = endpoint(&self.mtu);
        let peer = self.peer.parse().expect("a peer id");
        let connection = endpoint.dial(self.address, Alpn::Peer, peer).await.expect("dialled");
        // A peer that asks for pieces lets them come; here nobody does that for each.
        connection.allow(PEER_WINDOW);
        let hashes = self.hashes.as_ref().map(|path| fs::read(path).expect("the hashes"));
        let sink = Arc::new(Sink {
            hashes: hashes.unwrap_or_default(),
            how: self.how,
            copies: Pool::default(),
        });
        say("connected");
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut order = 0;
        while let Some(line) = lines.next_line().await.expect("a line") {
            if self.how.depth == 0 {
                drop_all(&connection, Ask { offset: 0, len: self.len, order }).await;
            } else if self.hashes.is_none() {
                self.pieces(&connection, order, None).await;
            } else {
                let (queue, threads) = sink.start(Path::new(&line));
                self.pieces(&connection, order, Some((sink.clone(), queue))).await;
                for thread in threads {
                    thread.join().expect("all pieces are right and written");
                }
            }
            order += self.len.div_ceil(PIECE) as i32;
            say("complete");
        }
    }

    /// Fetches all pieces, `depth` at a time, each on a stream of its own.
    async fn pieces(
        &self,
        connection: &Connection,
        order: i32,
        sink: Option<(Arc<Sink>, mpsc::Sender<Piece>)>,
    ) {
        let (next, len, together) = (Arc::new(AtomicU64::new(0)), self.len, self.how.together);
        let mut tasks = JoinSet::new();
        for _ in 0..self.how.depth {
            let (connection, next, sink) = (connection.clone(), next.clone(), sink.clone());
            tasks.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let offset = index * PIECE;
                    if offset >= len {
                        break;
                    }
                    let order = if together { 0 } else { order + index as i32 };
                    let ask = Ask { offset, len: PIECE.min(len - offset), order };
                    match &sink {
                        None => drop_all(&connection, ask).await,
                        Some((sink, queue)) => {
                            let bytes = sink.receive(&connection, ask).await;
                            queue.send(Piece { index, bytes }).await.expect("a writer runs");
                        }
                    }
                }
            });
        }
        tasks.join_all().await;
    }
}

async fn ask(connection: &Connection, ask: Ask) -> RecvStream {
    let (mut send, recv) = connection.open_bi().await.expect("a stream");
    write_frame(&mut send, &ask).await.expect("asked");
    send.finish().expect("open");
    recv
}

/// Receives what is asked for and keeps nothing.
async fn drop_all(connection: &Connection, wanted: Ask) {
    let mut recv = ask(connection, wanted).await;
    let mut len = 0;
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.expect("read") {
        len += chunk.bytes.len() as u64;
    }
    assert_eq!(len, wanted.len);
}

/// A piece as it was received.
struct Piece {
    index: u64,
    bytes: Received,
}

enum Received {
    /// As it came.
    Chunks(Vec<Bytes>),
    /// In one buffer.
    Whole(Lent),
}

/// What checks pieces and writes them.
struct Sink {
    hashes: Vec<u8>,
    how: How,
    /// What pieces are copied into.
    copies: Pool,
}

impl Sink {
    async fn receive(&self, connection: &Connection, wanted: Ask) -> Received {
        let mut recv = ask(connection, wanted).await;
        let mut len = 0;
        let received = if self.how.copied {
            let mut whole = self.copies.lend(wanted.len as usize);
            while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.expect("read") {
                whole.bytes[len..len + chunk.bytes.len()].copy_from_slice(&chunk.bytes);
                len += chunk.bytes.len();
            }
            Received::Whole(whole)
        } else {
            let mut chunks = Vec::with_capacity(512);
            let mut room = [const { Bytes::new() }; 64];
            while let Some(count) = recv.read_chunks(&mut room).await.expect("read") {
                len += room[..count].iter().map(Bytes::len).sum::<usize>();
                chunks.extend(room[..count].iter_mut().map(std::mem::take));
            }
            Received::Chunks(chunks)
        };
        assert_eq!(len as u64, wanted.len);
        received
    }

    /// Threads that check pieces and write them to a new file, until nobody has any more.
    fn start(self: &Arc<Self>, path: &Path) -> (mpsc::Sender<Piece>, Vec<JoinHandle<()>>) {
        let (queue, pieces) = mpsc::channel(WAITING);
        let pieces = Arc::new(Mutex::new(pieces));
        let file = Arc::new(File::create_new(path).expect("made"));
        let threads = (0..self.how.writers).map(|_| {
            let (sink, pieces, file) = (self.clone(), pieces.clone(), file.clone());
            thread::spawn(move || {
                loop {
                    let next = pieces.lock().expect("no panic").blocking_recv();
                    let Some(piece) = next else { return };
                    sink.store(&file, piece);
                }
            })
        });
        (queue, threads.collect())
    }

    fn store(&self, file: &File, Piece { index, bytes }: Piece) {
        match &bytes {
            Received::Chunks(chunks) => {
                self.check(index, chunks.iter().map(|chunk| &chunk[..]));
                write_vectored_at(file, chunks, index * PIECE);
            }
            Received::Whole(lent) => {
                self.check(index, [&lent.bytes[..]].into_iter());
                file.write_all_at(&lent.bytes, index * PIECE).expect("written");
            }
        }
    }

    fn check<'a>(&self, index: u64, chunks: impl Iterator<Item = &'a [u8]>) {
        let expected = &self.hashes[index as usize * 20..][..20];
        assert!(self.sha1(chunks) == expected, "piece {index} is not what was sent");
    }

    fn sha1<'a>(&self, chunks: impl Iterator<Item = &'a [u8]>) -> [u8; 20] {
        if self.how.sha1_crate {
            let mut sha1 = sha1::Sha1::new();
            chunks.for_each(|chunk| sha1.update(chunk));
            return sha1.finalize().into();
        }
        let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        chunks.for_each(|chunk| sha1.update(chunk));
        sha1.finish().as_ref().try_into().expect("20 bytes")
    }
}

/// Writes chunks one after the other, with as few calls as there can be.
fn write_vectored_at(file: &File, chunks: &[Bytes], mut offset: u64) {
    // The system takes 1,024 at once.
    for chunks in chunks.chunks(1024) {
        let mut slices: Vec<_> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let written = rustix::io::pwritev(file, rest, offset).expect("written");
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
    }
}
