//! Credentials as they are used: fetched once, again in time before they expire, and again when a server refuses them
//! although they say that they are good: somebody revoked or replaced them, or a clock is wrong. The SDK's own cache keeps
//! refused ones until they expire by themselves.

use crate::error::Error;
use crate::runtime::Clock;
use crate::secret::Secret;
use crate::store::StoreObserver;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use jiff::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// So long before they expire, new ones are asked for, so that somebody has time to do something where none are given.
const AHEAD: Duration = Duration::from_secs(10 * 60);

/// Of those that do not last for long this part of their life: whoever gives out such, or gives the same again until they nearly
/// end, is not asked with every request.
const AHEAD_PART: u32 = 4;

/// From so long before their end on, no request is made with them if there are others: it may be under way for as long as that.
const LAST: Duration = Duration::from_secs(30);

/// While those that are held are good, nobody waits for longer than this for others: a program that gives them out takes seconds.
const EARLY_PATIENCE: Duration = Duration::from_secs(5);

/// Nor asks again sooner than this after it was in vain.
const EARLY_PAUSE: Duration = Duration::from_secs(60);

/// A provider that remembers what another one gave. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::store) struct Renewing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SharedCredentialsProvider,
    observers: std::sync::Mutex<Observers>,
    held: Mutex<Option<Held>>,
    refused: AtomicBool,
}

#[derive(Debug)]
struct Held {
    credentials: Credentials,
    /// So long before their end others are asked for.
    ahead: Duration,
    /// When others were asked for in vain.
    in_vain: Option<Instant>,
}

impl Held {
    fn new(credentials: Credentials) -> Held {
        let life = left(&credentials);
        let ahead = life.map_or(AHEAD, |life| (life / AHEAD_PART).min(AHEAD));
        Held { credentials, ahead, in_vain: None }
    }

    /// They are good for longer than that, or for ever.
    fn last(&self, time: Duration) -> bool {
        left(&self.credentials).is_none_or(|left| left > time)
    }

    /// Nobody has to be asked for others now.
    fn do_for_now(&self) -> bool {
        let asked = self.in_vain.is_some_and(|then| then.elapsed() < EARLY_PAUSE);
        self.last(LAST) && (asked || self.last(self.ahead))
    }
}

/// Whoever uses the same credentials.
#[derive(Default, Debug)]
struct Observers {
    all: Vec<Weak<dyn StoreObserver>>,
    /// What was told of credentials that were given, if any were.
    given: Option<Option<Timestamp>>,
}

impl Renewing {
    /// Remembers what `provider` gives.
    pub(in crate::store) fn new(provider: SharedCredentialsProvider) -> Renewing {
        let (observers, held) = (std::sync::Mutex::default(), Mutex::new(None));
        Renewing(Arc::new(Inner { provider, observers, held, refused: AtomicBool::new(false) }))
    }

    /// Tells this one too, for as long as somebody else has it, until when what is given is good.
    pub(in crate::store) fn tell(&self, observer: &Arc<dyn StoreObserver>) {
        let mut observers = self.0.observers.lock().unwrap_or_else(PoisonError::into_inner);
        observers.all.retain(|one| one.strong_count() > 0);
        observers.all.push(Arc::downgrade(observer));
        if let Some(until) = observers.given {
            observer.credentials_given(until);
        }
    }

    /// What is held is not accepted, or may have changed: the next request asks for new ones.
    pub(in crate::store) fn refused(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// May be dropped at any time: then the next one asks.
    async fn current(&self) -> provider::Result {
        let Inner { provider, observers, held, refused } = self.0.as_ref();
        let observers = || observers.lock().unwrap_or_else(PoisonError::into_inner);
        // Held while they are fetched, so that many requests fetch once.
        let mut held = held.lock().await;
        let is_refused = refused.load(Ordering::Relaxed);
        if let Some(held) = held.as_ref().filter(|held| held.do_for_now() && !is_refused) {
            return Ok(held.credentials.clone());
        }
        // There is time left, and whoever gives them out may be back by then: no request waits for somebody who hangs.
        let is_early = !is_refused && held.as_ref().is_some_and(|held| held.last(LAST));
        let patience = if is_early { EARLY_PATIENCE } else { Duration::MAX };
        let late = || Err(CredentialsError::provider_timed_out(patience));
        match timeout(patience, provider.provide_credentials()).await.unwrap_or_else(|_| late()) {
            Ok(credentials) => {
                refused.store(false, Ordering::Relaxed);
                observers().given(end_of(&credentials));
                *held = Some(Held::new(credentials.clone()));
                Ok(credentials)
            }
            Err(error) => {
                observers().living().for_each(|observer| observer.credentials_failed());
                match held.as_mut().filter(|held| held.last(Duration::ZERO)) {
                    Some(held) => {
                        held.in_vain = Some(Instant::now());
                        Ok(held.credentials.clone())
                    }
                    None => Err(error),
                }
            }
        }
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
    use std::sync::atomic::AtomicU32;
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
        let renewing = Renewing::new(SharedCredentialsProvider::new(numbered));
        renewing.tell(&observer);
        (renewing, failing)
    }

    /// What was told: `None` for credentials that were not given.
    #[derive(Default, Debug)]
    struct Told(std::sync::Mutex<Vec<Option<Timestamp>>>);

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

    #[tokio::test]
    async fn they_are_fetched_once_and_again_when_they_are_refused() {
        let (renewing, failing) = lasting(3600);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-1".into()));
        renewing.refused();
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-2".into(), "key-2".into()));
        // Nobody gives new ones: the ones that are held may still be good, and the next request asks again
        failing.store(true, Ordering::Relaxed);
        renewing.refused();
        assert_eq!(key(&renewing).await, "key-2");
        failing.store(false, Ordering::Relaxed);
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
    async fn age(renewing: &Renewing, left_seconds: u64) {
        let mut held = renewing.0.held.lock().await;
        let held = held.as_mut().expect("some are held");
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
        let renewing = Renewing::new(SharedCredentialsProvider::new(numbered));
        renewing.tell(&(told.clone() as Arc<dyn StoreObserver>));
        assert_eq!(key(&renewing).await, "key-1");
        // Given that nobody gives new ones: from ten minutes before the end on that is noticed, once a minute
        failing.store(true, Ordering::Relaxed);
        age(&renewing, 660).await;
        assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 0));
        age(&renewing, 590).await;
        for _ in 0..10 {
            assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 1));
        }
        // When whoever gives them out hangs, then a request waits for a moment, and is made with the old ones
        hanging.store(true, Ordering::Relaxed);
        tokio::time::sleep(EARLY_PAUSE).await;
        let begun = Instant::now();
        assert_eq!((key(&renewing).await, failures()), ("key-1".into(), 2));
        assert!(begun.elapsed() <= 2 * EARLY_PATIENCE, "{:?}", begun.elapsed());
        // When they are given again
        hanging.store(false, Ordering::Relaxed);
        failing.store(false, Ordering::Relaxed);
        tokio::time::sleep(EARLY_PAUSE).await;
        assert_eq!(key(&renewing).await, "key-2");
    }

    #[tokio::test]
    async fn those_that_do_not_last_for_long_are_used_for_most_of_their_life() {
        let (renewing, _) = lasting(480);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-1".into()));
        age(&renewing, 121).await;
        assert_eq!(key(&renewing).await, "key-1");
        age(&renewing, 119).await;
        assert_eq!(key(&renewing).await, "key-2");
    }
}
