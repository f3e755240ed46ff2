//! Credentials as they are used: fetched once, again shortly before they expire, and again when a server refuses them
//! although they say that they are good: somebody revoked or replaced them, or a clock is wrong. The SDK's own cache keeps
//! refused ones until they expire by themselves.

use crate::runtime::Clock;
use crate::store::StoreObserver;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use jiff::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex;

/// So long before they expire, new ones are asked for: a request may be under way for as long as that.
const AHEAD: Duration = Duration::from_secs(30);

/// A provider that remembers what another one gave. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::store) struct Renewing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    provider: SharedCredentialsProvider,
    observers: std::sync::Mutex<Observers>,
    held: Mutex<Option<Credentials>>,
    refused: AtomicBool,
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

    /// The server does not accept what is held: the next request asks for new ones.
    pub(super) fn refused(&self) {
        self.0.refused.store(true, Ordering::Relaxed);
    }

    /// May be dropped at any time: then the next one asks.
    async fn current(&self) -> provider::Result {
        let Inner { provider, observers, held, refused } = self.0.as_ref();
        let observers = || observers.lock().unwrap_or_else(PoisonError::into_inner);
        // Held while they are fetched, so that many requests fetch once.
        let mut held = held.lock().await;
        if let Some(credentials) = held.as_ref().filter(|held| is_good_for(held, AHEAD))
            && !refused.load(Ordering::Relaxed)
        {
            return Ok(credentials.clone());
        }
        match provider.provide_credentials().await {
            Ok(credentials) => {
                refused.store(false, Ordering::Relaxed);
                observers().given(end_of(&credentials));
                *held = Some(credentials.clone());
                Ok(credentials)
            }
            // Not asked for in vain: there is time left, and whoever gives them out may be back by then.
            Err(error) => {
                observers().living().for_each(|observer| observer.credentials_failed());
                match held.as_ref().filter(|held| is_good_for(held, Duration::ZERO)) {
                    Some(credentials) => Ok(credentials.clone()),
                    None => Err(error),
                }
            }
        }
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

fn is_good_for(credentials: &Credentials, time: Duration) -> bool {
    end_of(credentials).is_none_or(|expiry| Clock::system().now() + time < expiry)
}

/// When they end, if they say so.
fn end_of(credentials: &Credentials) -> Option<Timestamp> {
    Timestamp::try_from(credentials.expiry()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NoObserver, Operation, StoreErrorKind};
    use aws_credential_types::provider::error::CredentialsError;
    use std::sync::atomic::AtomicU32;
    use std::time::SystemTime;

    /// Gives numbered ones that last so many seconds; fails when told to.
    #[derive(Debug)]
    struct Numbered {
        given: AtomicU32,
        lasting_seconds: u64,
        failing: Arc<AtomicBool>,
    }

    impl ProvideCredentials for Numbered {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
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
        let failing = Arc::new(AtomicBool::new(false));
        let numbered = Numbered { given: AtomicU32::new(0), lasting_seconds, failing: failing.clone() };
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
    async fn shortly_before_they_expire_new_ones_are_asked_for() {
        let (renewing, failing) = lasting(20);
        assert_eq!((key(&renewing).await, key(&renewing).await), ("key-1".into(), "key-2".into()));
        failing.store(true, Ordering::Relaxed);
        assert_eq!(key(&renewing).await, "key-2");
        let (expired, failing) = lasting(0);
        key(&expired).await;
        failing.store(true, Ordering::Relaxed);
        assert!(expired.current().await.is_err());
    }
}
