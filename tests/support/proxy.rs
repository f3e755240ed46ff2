//! A TCP proxy on the loopback that does to its connections what networks do: resets, delays, throttles, and half-open
//! connections on which nothing passes and nothing is said. Everything can be changed while connections live.

use socket2::SockRef;
use std::collections::VecDeque;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

/// Read at once. Small, so that a throttle passes bytes evenly.
const PIECE_BYTES: usize = 16 << 10;

/// Bytes on their way, of one direction of one connection, while they are delayed.
const DELAYED_BYTES_MAX: usize = 4 << 20;

/// A way through the proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What the network is like now.
#[derive(Clone, Copy, Default, Debug)]
pub struct Network {
    /// Every byte arrives so much later, both ways.
    pub delay: Duration,
    /// At most so many bytes a second pass, each way of each connection.
    pub bytes_per_second: Option<u64>,
    /// Nothing passes from the client to the server, and neither side is told.
    pub stalled_up: bool,
    /// Nothing passes from the server to the client, and neither side is told.
    pub stalled_down: bool,
    /// Whoever connects is reset at once, as by a host whose server is down.
    pub refusing: bool,
    /// Connections older than this one are dead for ever and are not told, as when a firewall has forgotten them.
    stranded_before: u64,
    /// Each change ends all connections, like this.
    ended: (u64, End),
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
enum End {
    #[default]
    Close,
    Reset,
}

impl Network {
    fn stalls(&self, way: Way, connection: u64) -> bool {
        let stalled = if way == Way::Up { self.stalled_up } else { self.stalled_down };
        stalled || connection < self.stranded_before
    }
}

#[derive(Default)]
struct Passed {
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
}

/// Forwards every connection to one address until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    passed: Arc<Passed>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of `target`, on a network without faults.
    pub async fn start(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let network = Arc::new(watch::Sender::new(Network::default()));
        let passed = Arc::new(Passed::default());
        let (watched, counted) = (Arc::clone(&network), Arc::clone(&passed));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if watched.borrow().refusing {
                    reset_on_drop(&client);
                    continue;
                }
                let number = counted.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(forward(client, target, number, watched.subscribe(), Arc::clone(&counted)));
            }
        });
        Proxy { address, network, passed, accepting }
    }

    /// A proxy in front of an `http://host:port`.
    pub async fn before_endpoint(endpoint: &str) -> Proxy {
        Proxy::start(endpoint.trim_start_matches("http://").parse().unwrap()).await
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the network for all connections, those that live included.
    pub fn set(&self, change: impl FnOnce(&mut Network)) {
        self.network.send_modify(change);
    }

    /// A network without faults again. What was stalled goes on; what was stranded or ended stays so.
    pub fn heal(&self) {
        self.set(|network| {
            *network = Network { stranded_before: network.stranded_before, ended: network.ended, ..Network::default() };
        });
    }

    /// Closes every connection that there is now, as a process that ends does.
    pub fn cut(&self) {
        self.set(|network| network.ended = (network.ended.0 + 1, End::Close));
    }

    /// Resets every connection that there is now (RST).
    pub fn reset(&self) {
        self.set(|network| network.ended = (network.ended.0 + 1, End::Reset));
    }

    /// Every connection that there is now is dead from now on, and neither side is told. New ones work.
    pub fn strand(&self) {
        let made = self.connections();
        self.set(|network| network.stranded_before = made);
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.passed.connections.load(Ordering::Relaxed)
    }

    /// Bytes that have passed.
    pub fn bytes(&self, way: Way) -> u64 {
        let counter = if way == Way::Up { &self.passed.up } else { &self.passed.down };
        counter.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Dropping the connection sends a reset instead of an orderly end.
fn reset_on_drop(connection: &TcpStream) {
    SockRef::from(connection).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn forward(
    mut client: TcpStream,
    target: SocketAddr,
    number: u64,
    mut network: watch::Receiver<Network>,
    passed: Arc<Passed>,
) {
    let ended = network.borrow_and_update().ended.0;
    let Ok(mut server) = TcpStream::connect(target).await else { return reset_on_drop(&client) };
    for connection in [&client, &server] {
        connection.set_nodelay(true).unwrap();
    }
    let end = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        let up = pump(from_client, to_server, Way::Up, number, network.clone(), &passed.up);
        let down = pump(from_server, to_client, Way::Down, number, network.clone(), &passed.down);
        tokio::select! {
            _ = async { tokio::try_join!(up, down) } => End::Close,
            end = wait_for_end(&mut network, ended) => end,
        }
    };
    if end == End::Reset {
        reset_on_drop(&client);
        reset_on_drop(&server);
    }
}

async fn wait_for_end(network: &mut watch::Receiver<Network>, before: u64) -> End {
    match network.wait_for(|network| network.ended.0 != before).await {
        Ok(network) => network.ended.1,
        Err(_) => End::Close,
    }
}

/// Passes bytes one way until that way is closed (then the other may go on) or breaks.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    way: Way,
    connection: u64,
    mut network: watch::Receiver<Network>,
    passed: &AtomicU64,
) -> std::io::Result<()> {
    let mut delayed: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; PIECE_BYTES];
    let mut open = true;
    loop {
        let now = *network.borrow_and_update();
        if now.stalls(way, connection) {
            // What is on its way waits as well. Nobody reads: the sender sees no error, and at last no room.
            if network.changed().await.is_err() {
                return Ok(());
            }
            continue;
        }
        let due = delayed.front().map(|(due, _)| *due);
        if due.is_none() && !open {
            return to.shutdown().await;
        }
        let waiting: usize = delayed.iter().map(|(_, bytes)| bytes.len()).sum();
        tokio::select! {
            biased;
            _ = network.changed() => {}
            () = async { match due { Some(due) => sleep_until(due).await, None => pending().await } } => {
                let Some((_, bytes)) = delayed.pop_front() else { continue };
                let begun = Instant::now();
                to.write_all(&bytes).await?;
                passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if let Some(rate) = now.bytes_per_second {
                    let pace = Duration::from_secs_f64(bytes.len() as f64 / rate as f64);
                    // A change of the network is heard at once, not at the end of a slow piece.
                    let _ = timeout(pace.saturating_sub(begun.elapsed()), network.changed()).await;
                }
            }
            read = from.read(&mut buffer), if open && waiting < DELAYED_BYTES_MAX => {
                let bytes = read?;
                open = bytes > 0;
                if open {
                    delayed.push_back((Instant::now() + now.delay, buffer[..bytes].to_vec()));
                }
            }
        }
    }
}
