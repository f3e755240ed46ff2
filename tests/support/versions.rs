//! One test for each major version of PostgreSQL, and one that none is left out. Include it with `#[macro_use]`, beside `support`.

macro_rules! for_every_version {
    ($check:ident: $($name:ident = $version:literal),+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $check($version).await;
        })+
        #[test]
        fn no_version_is_left_out() {
            assert_eq!(crate::support::postgres::SERVER_VERSIONS, [$($version),+]);
        }
    };
}
