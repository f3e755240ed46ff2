//! Credentials as they are used: fetched once, again in time before they expire, and again when a server refuses them
//! although they say that they are good: somebody revoked or replaced them, or a clock is wrong. The SDK's own cache keeps
//! refused ones until they expire by themselves. Whoever gives them out is asked by a task that outlives the request that began it:
//! as long as those that are held are good, no request depends on him.

use crate::error::{Error, Kind};
use crate::runtime::{Clock, Tasks};
use crate::secret::{Secret, Source};
use crate::store::StoreObserver;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use jiff::Timestamp;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// So long before they expire, new ones are asked for, so that somebody has time to do something where none are given.
const AHEAD: Duration = Duration::from_secs(10 * 60);

/// Of those that do not last for long this part of their life: whoever gives out such, or gives the same again until they nearly
/// end, is not asked with every request.
const AHEAD_PART: u32 = 4;

/// From so long before their end on, no request is made with them if there are others: it may be under way for as long as that.
const LAST: Duration = Duration::from_secs(30);

/// While those that are held are good, the request that has others asked for waits no longer than this for them, and no other request
/// at all: a program that gives them out takes seconds.
const EARLY_PATIENCE: Duration = Duration::from_secs(5);

/// Nor are others asked for again sooner than this after it was in vain.
const EARLY_PAUSE: Duration = Duration::from_secs(60);

/// The same, where the server does not take those that are held.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// When those that are held may not do any more, a request waits for so long, and is then made with them: a part of the time that it has.
const LATE_PATIENCE: Duration = Duration::from_secs(15);

/// Where none are held, a request waits for so long, and fails: before its own time has passed, so that it says whom it has waited for.
const FIRST_PATIENCE: Duration = Duration::from_secs(25);

/// Whoever says nothing for so long gives none.
const LIMIT: Duration = Duration::from_secs(60);

/// A provider that remembers what another one gave. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::store) struct Renewing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SharedCredentialsProvider,
    /// Who that is, for people.
    who: String,
    observers: Mutex<Observers>,
    state: Mutex<State>,
    /// The one that asks, which ends with the last who has these credentials.
    task: Mutex<Tasks<()>>,
    /// How often somebody has been asked, and has given some or none.
    ended: watch::Sender<u64>,
}

#[derive(Default, Debug)]
struct State {
    held: Option<Held>,
    /// The server does not take what is held.
    is_refused: bool,
    /// What is held is good, and somebody says that there may be others by now.
    is_wanted: bool,
    /// Asked for in vain since some were given the last time.
    in_vain: Option<InVain>,
    /// Somebody is being asked: nobody else is meanwhile.
    is_asking: bool,
}

#[derive(Debug)]
struct Held {
    credentials: Credentials,
    /// So long before their end others are asked for.
    ahead: Duration,
}

#[derive(Debug)]
struct InVain {
    at: Instant,
    why: Arc<CredentialsError>,
}

impl Held {
    fn new(credentials: Credentials) -> Held {
        let life = left(&credentials);
        let ahead = life.map_or(AHEAD, |life| (life / AHEAD_PART).min(AHEAD));
        Held { credentials, ahead }
    }

    /// They are good for longer than that, or for ever.
    fn last(&self, time: Duration) -> bool {
        left(&self.credentials).is_none_or(|left| left > time)
    }
}

/// What a request does.
enum Turn {
    /// It is made with these, at once.
    With(Credentials),
    /// It has others asked for, unless somebody is being asked, and waits for so long.
    Wait(Duration),
}

impl State {
    fn turn(&self) -> Turn {
        let was_in_vain = |pause| self.in_vain.as_ref().is_some_and(|in_vain| in_vain.at.elapsed() < pause);
        match &self.held {
            Some(held) if held.last(LAST) && !self.is_refused => {
                let is_enough = held.last(held.ahead) && !self.is_wanted;
                match is_enough || self.is_asking || was_in_vain(EARLY_PAUSE) {
                    true => Turn::With(held.credentials.clone()),
                    false => Turn::Wait(EARLY_PATIENCE),
                }
            }
            Some(held) if held.last(LAST) && was_in_vain(REFUSED_PAUSE) => Turn::With(held.credentials.clone()),
            Some(held) if held.last(Duration::ZERO) => Turn::Wait(LATE_PATIENCE),
            Some(_) | None => Turn::Wait(FIRST_PATIENCE),
        }
    }

    /// Whoever gets true has others asked for.
    fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.is_asking, true)
    }

    /// After it has waited.
    fn outcome(&self, who: &str) -> provider::Result {
        match (&self.held, &self.in_vain) {
            // Also those that have ended already: the clock may be wrong.
            (Some(held), None) => Ok(held.credentials.clone()),
            (Some(held), Some(_)) if held.last(Duration::ZERO) => Ok(held.credentials.clone()),
            (_, Some(in_vain)) => Err(again(&in_vain.why)),
            (None, None) => Err(CredentialsError::provider_error(Silent(who.to_owned()))),
        }
    }
}

/// Who is being asked for the first credentials has said nothing yet.
#[derive(Debug)]
pub(super) struct Silent(String);

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} gives no credentials within {} seconds", self.0, FIRST_PATIENCE.as_secs())
    }
}

impl StdError for Silent {}

/// Whoever uses the same credentials.
#[derive(Default, Debug)]
struct Observers {
    all: Vec<Weak<dyn StoreObserver>>,
    /// What was told of credentials that were given, if any were.
    given: Option<Option<Timestamp>>,
}

impl Renewing {
    /// Remembers what `provider` gives, which messages call `who`.
    pub(in crate::store) fn new(provider: SharedCredentialsProvider, who: String) -> Renewing {
        let (observers, state, task) = (Mutex::default(), Mutex::default(), Mutex::default());
        Renewing(Arc::new(Inner { provider, who, observers, state, task, ended: watch::Sender::new(0) }))
    }

    /// Tells this one too, for as long as somebody else has it, until when what is given is good.
    pub(in crate::store) fn tell(&self, observer: &Arc<dyn StoreObserver>) {
        let mut observers = self.0.observers();
        observers.all.retain(|one| one.strong_count() > 0);
        observers.all.push(Arc::downgrade(observer));
        if let Some(until) = observers.given {
            observer.credentials_given(until);
        }
    }

    /// The server does not take what is held: the next request asks for others.
    pub(in crate::store) fn refused(&self) {
        self.0.state().is_refused = true;
    }

    /// What is held may have been replaced: others are asked for now, and it is used until they are given. Whoever is being asked may
    /// give what was before, and is asked once more then. Nobody is where nobody has asked yet.
    pub(in crate::store) fn renew(&self) {
        {
            let mut state = self.0.state();
            if state.held.is_none() && state.in_vain.is_none() {
                return;
            }
            state.in_vain = None;
            state.is_wanted = true;
            if !state.begins() {
                return;
            }
        }
        self.ask();
    }

    /// Has others asked for, without waiting for them. [`State::begins`] says whose turn it is.
    fn ask(&self) {
        let is_wanted = std::mem::take(&mut self.0.state().is_wanted);
        let asked = Asked { inner: Arc::downgrade(&self.0), is_wanted, given: None };
        let provider = self.0.provider.clone();
        // Locked until it has begun: the next one, whose turn comes when it has ended, takes its place.
        let mut task = self.0.task.lock().unwrap_or_else(PoisonError::into_inner);
        *task = Tasks::default();
        task.start(async move {
            let late = |_| Err(CredentialsError::provider_timed_out(LIMIT));
            asked.answers(timeout(LIMIT, provider.provide_credentials()).await.unwrap_or_else(late));
        });
    }

    /// May be dropped at any time: whoever is being asked is waited for by the next one.
    async fn current(&self) -> provider::Result {
        let (mut ended, patience, begins) = {
            let mut state = self.0.state();
            match state.turn() {
                Turn::With(credentials) => return Ok(credentials),
                Turn::Wait(patience) => (self.0.ended.subscribe(), patience, state.begins()),
            }
        };
        if begins {
            self.ask();
        }
        // In time or not: what is held by then is what there is.
        let _ = timeout(patience, ended.changed()).await;
        self.0.state().outcome(&self.0.who)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observers(&self) -> MutexGuard<'_, Observers> {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn given(&self, given: provider::Result, is_wanted: bool) {
        let mut state = self.state();
        state.is_asking = false;
        match given {
            Ok(credentials) => {
                let until = end_of(&credentials);
                state.is_refused = false;
                state.held = Some(Held::new(credentials));
                if state.in_vain.take().is_some() {
                    tracing::info!("credentials for the store are given again");
                }
                drop(state);
                self.observers().given(until);
            }
            Err(why) => {
                let why = Arc::new(why);
                state.is_wanted |= is_wanted;
                let is_news = state.in_vain.is_none();
                if is_news && state.held.as_ref().is_some_and(|held| held.last(Duration::ZERO)) {
                    let error = Error::new(Kind::Store, "others are not given").because(Same(why.clone()));
                    tracing::warn!(%error, "the store's credentials are used that are held, until they end");
                } else if is_news && self.ended.receiver_count() == 0 {
                    // A request that waits fails, and says why; but none does any more.
                    let error = Error::new(Kind::Store, format!("asked {}", self.who)).because(Same(why.clone()));
                    tracing::warn!(%error, "the store's credentials are not given");
                }
                state.in_vain = Some(InVain { at: Instant::now(), why });
                drop(state);
                self.observers().living().for_each(|observer| observer.credentials_failed());
            }
        }
        self.ended.send_modify(|ended| *ended += 1);
    }
}

/// Somebody is being asked. However that ends, even by a defect, those who wait hear of it.
struct Asked {
    inner: Weak<Inner>,
    is_wanted: bool,
    given: Option<provider::Result>,
}

impl Asked {
    fn answers(mut self, given: provider::Result) {
        self.given = Some(given);
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let given =
                self.given.take().unwrap_or_else(|| Err(CredentialsError::unhandled("it ended without an answer")));
            inner.given(given, self.is_wanted);
        }
    }
}

/// The same error, for one more who has waited.
fn again(why: &Arc<CredentialsError>) -> CredentialsError {
    match why.as_ref() {
        CredentialsError::ProviderTimedOut(_) => CredentialsError::provider_timed_out(LIMIT),
        _ => CredentialsError::provider_error(Same(why.clone())),
    }
}

#[derive(Debug)]
struct Same(Arc<CredentialsError>);

impl fmt::Display for Same {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Same {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Credentials of which each half is a secret. They are read whenever they are asked for: [`Renewing`] remembers them.
#[derive(Clone, Debug)]
pub(in crate::store) struct FromSecrets {
    /// The key's id.
    pub(in crate::store) id: Secret,
    /// Its other half.
    pub(in crate::store) key: Secret,
}

impl fmt::Display for FromSecrets {
    /// Those who are asked for the halves that are not given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = [&self.id, &self.key].into_iter().filter(|half| !matches!(half.source(), Source::Given(_)));
        let asked: Vec<String> = asked.map(|half| format!("{} ({})", half.source(), half.setting())).collect();
        f.write_str(&asked.join(" or "))
    }
}

impl FromSecrets {
    async fn read(&self) -> Result<Credentials, Error> {
        // At once: a request waits for both.
        let (id, key) = tokio::try_join!(self.id.read_anew(), self.key.read_anew())?;
        Ok(Credentials::new(id, key, None, None, "seawall"))
    }
}

impl ProvideCredentials for FromSecrets {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { self.read().await.map_err(CredentialsError::provider_error) })
    }
}

impl Observers {
    fn living(&self) -> impl Iterator<Item = Arc<dyn StoreObserver>> {
        self.all.iter().filter_map(Weak::upgrade)
    }

    fn given(&mut self, until: Option<Timestamp>) {
        self.given = Some(until);
        self.living().for_each(|observer| observer.credentials_given(until));
    }
}

impl ProvideCredentials for Renewing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.current())
    }
}

/// How long they are still good, if they end: nothing, if they have.
fn left(credentials: &Credentials) -> Option<Duration> {
    let left = end_of(credentials)?.duration_since(Clock::system().now());
    Some(Duration::try_from(left).unwrap_or_default())
}

/// When they end, if they say so.
fn end_of(credentials: &Credentials) -> Option<Timestamp> {
    Timestamp::try_from(credentials.expiry()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NoObserver, Operation, StoreErrorKind};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::SystemTime;

    /// Gives numbered ones that last so many seconds; fails when told to.
    #[derive(Debug)]
    struct Numbered {
        given: AtomicU32,
        lasting_seconds: u64,
        failing: Arc<AtomicBool>,
        hanging: Arc<AtomicBool>,
    }

    impl ProvideCredentials for Numbered {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            if self.hanging.load(Ordering::Relaxed) {
                return future::ProvideCredentials::new(std::future::pending());
            }
            if self.failing.load(Ordering::Relaxed) {
                return future::ProvideCredentials::ready(Err(CredentialsError::not_loaded("told to")));
            }
            let number = self.given.fetch_add(1, Ordering::Relaxed) + 1;
            let now: SystemTime = Clock::system().now().into();
            let expiry = now + Duration::from_secs(self.lasting_seconds);
            let credentials = Credentials::new(format!("key-{number}"), "secret", None, Some(expiry), "test");
            future::ProvideCredentials::ready(Ok(credentials))
        }
    }

    fn lasting(lasting_seconds: u64) -> (Renewing, Arc<AtomicBool>) {
        observed(lasting_seconds, Arc::new(NoObserver))
    }

    fn observed(lasting_seconds: u64, observer: Arc<dyn StoreObserver>) -> (Renewing, Arc<AtomicBool>) {
        let (failing, hanging) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let numbered = Numbered { given: AtomicU32::new(0), lasting_seconds, failing: failing.clone(), hanging };
        let renewing = Renewing::new(SharedCredentialsProvider::new(numbered), "the test".to_owned());
        renewing.tell(&observer);
        (renewing, failing)
    }

    /// What was told: `None` for credentials that were not given.
    #[derive(Default, Debug)]
    struct Told(Mutex<Vec<Option<Timestamp>>>);

    impl StoreObserver for Told {
        fn finished(&self, _: Operation, _: f64, _: u64, _: Option<StoreErrorKind>) {}

        fn credentials_given(&self, until: Option<Timestamp>) {
            self.0.lock().unwrap().push(until);
        }

        fn credentials_failed(&self) {
            self.0.lock().unwrap().push(None);
        }
    }

    #[tokio::test]
    async fn who_observes_is_told_until_when_they_are_good_and_when_none_were_given() {
        let told = Arc::new(Told::default());
        let (renewing, failing) = observed(3600, told.clone());
        let before = Clock::system().now();
        key(&renewing).await;
        key(&renewing).await;
        // Who comes later hears of what was given before, and who is gone of nothing
        let late: Arc<dyn StoreObserver> = Arc::new(Told::default());
        renewing.tell(&late);
        let gone = Arc::downgrade(&late);
        assert!(format!("{late:?}").contains("Some("), "{late:?}");
        drop(late);
        assert!(gone.upgrade().is_none(), "it is kept");
        failing.store(true, Ordering::Relaxed);
        renewing.refused();
        key(&renewing).await;
        let told = told.0.lock().unwrap();
        let [Some(until), None] = told[..] else { panic!("told {told:?}") };
        assert!(until >= before + Duration::from_secs(3600), "{until}");
    }

    async fn key(renewing: &Renewing) -> String {
        renewing.current().await.unwrap().access_key_id().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_fetched_once_and_again_when_they_are_refused() {
        let (renewing, failing) = lasting(3600);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-1".into()));
        renewing.refused();
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-2".into(), "key-2".into()));
        // Nobody gives new ones: the ones that are held may still be good, and soon somebody is asked again
        failing.store(true, Ordering::Relaxed);
        renewing.refused();
        assert_eq!(key(&renewing).await, "key-2");
        failing.store(false, Ordering::Relaxed);
        assert_eq!(key(&renewing).await, "key-2");
        tokio::time::sleep(REFUSED_PAUSE).await;
        assert_eq!(key(&renewing).await, "key-3");
    }

    #[tokio::test]
    async fn shortly_before_they_expire_new_ones_are_asked_for_with_every_request() {
        let (renewing, failing) = lasting(20);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-2".into()));
        failing.store(true, Ordering::Relaxed);
        assert_eq!(key(&renewing).await, "key-2");
        let (expired, failing) = lasting(0);
        key(&expired).await;
        failing.store(true, Ordering::Relaxed);
        assert!(expired.current().await.is_err());
    }

    /// Those that are held end in so many seconds.
    fn age(renewing: &Renewing, left_seconds: u64) {
        let mut state = renewing.0.state();
        let held = state.held.as_mut().expect("some are held");
        let end: SystemTime = (Clock::system().now() + Duration::from_secs(left_seconds)).into();
        held.credentials = Credentials::new(held.credentials.access_key_id(), "secret", None, Some(end), "test");
    }

    #[tokio::test(start_paused = true)]
    async fn new_ones_are_asked_for_ten_minutes_ahead_and_nobody_is_hurt_where_none_are_given() {
        let told = Arc::new(Told::default());
        let failures = || told.0.lock().unwrap().iter().filter(|told| told.is_none()).count();
        let (failing, hanging) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let numbered = Numbered {
            given: AtomicU32::new(0),
            lasting_seconds: 3600,
            failing: failing.clone(),
            hanging: hanging.clone(),
        };
        let renewing = Renewing::new(SharedCredentialsProvider::new(numbered), "the test".to_owned());
        renewing.tell(&(told.clone() as Arc<dyn StoreObserver>));
        assert_eq!(key(&renewing).await, "key-1");
        // Given that nobody gives new ones: from ten minutes before the end on that is noticed, once a minute
        failing.store(true, Ordering::Relaxed);
        age(&renewing, 660);
        assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 0));
        age(&renewing, 590);
        for _ in 0..10 {
            assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 1));
        }
        // When whoever gives them out hangs, then a request waits for a moment, and is made with the old ones, as all others are
        hanging.store(true, Ordering::Relaxed);
        tokio::time::sleep(EARLY_PAUSE).await;
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 1));
        }
        assert!(begun.elapsed() <= EARLY_PATIENCE, "{:?}", begun.elapsed());
        tokio::time::sleep(LIMIT).await;
        assert_eq!(failures(), 2);
        // When they are given again
        hanging.store(false, Ordering::Relaxed);
        failing.store(false, Ordering::Relaxed);
        tokio::time::sleep(EARLY_PAUSE).await;
        assert_eq!(key(&renewing).await, "key-2");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_hurt_where_others_are_wanted_while_whoever_gives_them_out_hangs() {
        let (failing, hanging) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let given = AtomicU32::new(0);
        let numbered = Numbered { given, lasting_seconds: 36_000, failing: failing.clone(), hanging: hanging.clone() };
        let renewing = Renewing::new(SharedCredentialsProvider::new(numbered), "the test".to_owned());
        // Given that nobody has needed any, nobody is asked
        renewing.renew();
        assert_eq!(key(&renewing).await, "key-1");
        // When others are wanted, and whoever gives them out hangs, then requests go on with those that are good, at once
        hanging.store(true, Ordering::Relaxed);
        renewing.renew();
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(key(&renewing).await, "key-1");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        // and for as long as that lasts they wait for nobody but for a moment, once in a while
        for _ in 0..600 {
            let begun = Instant::now();
            assert_eq!(key(&renewing).await, "key-1");
            assert!(begun.elapsed() <= EARLY_PATIENCE, "{:?}", begun.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // Where the server says that it does not take them, which may be a mistake, they are used in the end, within a request's time
        renewing.refused();
        let begun = Instant::now();
        assert_eq!(key(&renewing).await, "key-1");
        assert!(begun.elapsed() <= LATE_PATIENCE, "{:?}", begun.elapsed());
        // When it hangs no more, then others are given
        hanging.store(false, Ordering::Relaxed);
        tokio::time::sleep(LIMIT + EARLY_PAUSE).await;
        assert_eq!(key(&renewing).await, "key-2");
        // And who wants others while somebody is being asked gets those that come after
        renewing.renew();
        renewing.renew();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(key(&renewing).await, "key-4");
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_others_are_not_given_is_logged_when_it_is_news_and_names_the_key() {
        let (log, writer) = {
            let log = Log::default();
            (log.clone(), move || log.clone())
        };
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let _logging = tracing::subscriber::set_default(lines);
        // Given keys of which one half is gone since
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("key");
        std::fs::write(&file, "s3cret").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let id = Secret::new("s3.access_key_id", Source::Given("id".to_owned()));
        let keys = FromSecrets { id, key: Secret::new("s3.secret_access_key", Source::File(file.clone())) };
        let who = keys.to_string();
        let renewing = Renewing::new(SharedCredentialsProvider::new(keys), who);
        assert_eq!(key(&renewing).await, "id");
        std::fs::remove_file(&file).unwrap();
        // When others are wanted, then that is said once, however often it is tried, and again when somebody wants them again
        for news in 1..=2 {
            renewing.renew();
            for _ in 0..5 {
                assert_eq!(key(&renewing).await, "id");
                tokio::time::sleep(EARLY_PAUSE).await;
            }
            let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert_eq!(said.matches("s3.secret_access_key_file: there is no").count(), news, "{said}");
            assert_eq!(said.matches("there is no").count(), news, "it is repeated: {said}");
        }
    }

    #[tokio::test]
    async fn whoever_gives_no_first_credentials_is_named_in_time() {
        let (log, writer) = {
            let log = Log::default();
            (log.clone(), move || log.clone())
        };
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        let _logging = tracing::subscriber::set_default(lines);
        let key = Source::Command(["sleep", "600"].map(str::to_owned).to_vec());
        let id = Secret::new("s3.access_key_id", Source::Given("id".to_owned()));
        let keys = FromSecrets { id, key: Secret::new("s3.secret_access_key", key) };
        tokio::time::pause();
        // Given a program that hangs when it is asked for the first time, then the request says so within its time
        let who = keys.to_string();
        let renewing = Renewing::new(SharedCredentialsProvider::new(keys), who);
        let error = timeout(Duration::from_secs(30), renewing.current()).await.expect("in time").unwrap_err();
        let error = error.source().map(ToString::to_string).unwrap_or_default();
        assert_eq!(error, "the command sleep (s3.secret_access_key) gives no credentials within 25 seconds");
        // And where nobody waits any more when it has ended, the log does
        tokio::time::sleep(LIMIT).await;
        let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        assert_eq!(said.matches("the store's credentials are not given").count(), 1, "{said}");
        assert!(said.contains("s3.secret_access_key_command: the command sleep was ended"), "{said}");
    }

    #[tokio::test]
    async fn a_request_that_gives_up_ends_nobody_who_is_being_asked() {
        // Given somebody who takes his time, longer than the request that asks
        #[derive(Debug)]
        struct Slow(Duration);
        impl ProvideCredentials for Slow {
            fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
            where
                Self: 'a,
            {
                future::ProvideCredentials::new(async {
                    tokio::time::sleep(self.0).await;
                    Ok(Credentials::new("slow", "secret", None, None, "test"))
                })
            }
        }
        tokio::time::pause();
        let renewing = Renewing::new(SharedCredentialsProvider::new(Slow(Duration::from_secs(40))), "it".to_owned());
        assert!(timeout(Duration::from_secs(20), renewing.current()).await.is_err());
        // Then the next one has what he gave
        assert!(timeout(Duration::from_secs(30), renewing.current()).await.is_ok_and(|given| given.is_ok()));
    }

    #[tokio::test]
    async fn those_that_do_not_last_for_long_are_used_for_most_of_their_life() {
        let (renewing, _) = lasting(480);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-1".into()));
        age(&renewing, 121);
        assert_eq!(key(&renewing).await, "key-1");
        age(&renewing, 119);
        assert_eq!(key(&renewing).await, "key-2");
    }
}
