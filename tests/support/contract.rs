//! The contract of `store::Store` as stories, for any store that is empty at the start.
//!
//! `contract_tests!` makes one test of each story for one kind of store.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::join_all;
use seawall::store::{Body, ConditionalWrites, Created, Metadata, Store, StoreErrorKind, Upload, list_all, probe};
use std::collections::BTreeSet;

/// A kind of store, fresh and empty for one test.
macro_rules! contract_tests {
    ($(#[$attribute:meta])* $name:ident, $fresh:expr) => {
        contract_tests!(@all $name, $fresh,
            an_object_reads_back_as_it_was_stored
            metadata_comes_back_or_is_not_kept_at_all
            a_name_that_is_taken_stays_untouched
            of_racing_creates_exactly_one_is_new
            an_empty_object_is_an_object
            ranges_are_half_open_and_cut_at_the_end
            what_is_not_there_is_not_found
            a_body_of_many_pieces_is_one_object
            a_large_object_streams_in_bounded_pieces
            a_listing_names_every_object_once
            a_level_shows_objects_and_prefixes
            a_long_level_is_whole
            a_deleted_object_is_gone_and_deleting_again_is_fine
            a_name_is_free_again_after_deleting
            an_upload_appears_when_it_is_completed
            an_upload_of_several_pieces_is_one_object
            an_upload_without_a_piece_is_an_empty_object
            an_upload_does_not_replace_an_object
            of_racing_uploads_exactly_one_is_new
            an_aborted_upload_leaves_nothing
            illegal_names_are_refused
            conditional_writes_are_found_to_be_honoured
        );
    };
    (@all $name:ident, $fresh:expr, $($story:ident)*) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    // The second part keeps alive what the store needs: a directory, a server.
                    let (store, _guard) = $fresh.await;
                    contract::$story(store.as_ref()).await;
                }
            )*
        }
    };
}
pub(crate) use contract_tests;

fn text(text: &str) -> Body {
    Body::from(Bytes::copy_from_slice(text.as_bytes()))
}

async fn create(store: &dyn Store, key: &str, body: impl Into<Body>) -> Created {
    store.create(key, body.into(), Metadata::new()).await.unwrap_or_else(|error| panic!("create {key}: {error:?}"))
}

async fn read(store: &dyn Store, key: &str) -> Bytes {
    let stream = store.get(key, None).await.unwrap_or_else(|error| panic!("get {key}: {error:?}"));
    stream.collect().await.unwrap_or_else(|error| panic!("body of {key}: {error:?}"))
}

async fn kind_of_get(store: &dyn Store, key: &str) -> StoreErrorKind {
    store.get(key, None).await.map(|_| ()).expect_err("get of what is not there").kind
}

/// Bytes without a short period, so that a piece in the wrong place shows.
fn pattern(bytes: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pattern = Vec::with_capacity(bytes + 8);
    while pattern.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        pattern.extend_from_slice(&state.to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern.into()
}

pub async fn an_object_reads_back_as_it_was_stored(store: &dyn Store) {
    assert_eq!(create(store, "a/b/c.lz4", text("hello")).await, Created::New);

    assert_eq!(read(store, "a/b/c.lz4").await, "hello");
    let head = store.head("a/b/c.lz4").await.expect("head");
    assert_eq!((head.info.key.as_str(), head.info.bytes), ("a/b/c.lz4", 5));
    let streamed = store.get("a/b/c.lz4", None).await.expect("get").head;
    assert_eq!(streamed, head, "get and head must say the same of an object");
}

pub async fn metadata_comes_back_or_is_not_kept_at_all(store: &dyn Store) {
    let metadata: Metadata =
        [("system-id", "7318273"), ("range", "0/1000000-0/2000000")].map(|(k, v)| (k.into(), v.into())).into();
    store.create("a", text("x"), metadata.clone()).await.expect("create");
    let mut upload = store.begin_upload("b", metadata.clone()).await.expect("begin");
    upload.put_piece(text("y")).await.expect("piece");
    upload.complete().await.expect("complete");

    for key in ["a", "b"] {
        let headed = store.head(key).await.expect("head").metadata;
        let got = store.get(key, None).await.expect("get").head.metadata;
        assert!(headed == metadata || headed.is_empty(), "{key}: some of the metadata came back: {headed:?}");
        assert_eq!(headed, got, "{key}: head and get disagree");
    }
}

pub async fn a_name_that_is_taken_stays_untouched(store: &dyn Store) {
    create(store, "a", text("first")).await;
    let before = store.head("a").await.expect("head");

    assert_eq!(create(store, "a", text("second, and longer")).await, Created::Exists);
    assert_eq!(create(store, "a", text("first")).await, Created::Exists);

    assert_eq!(read(store, "a").await, "first");
    assert_eq!(store.head("a").await.expect("head"), before);
}

pub async fn of_racing_creates_exactly_one_is_new(store: &dyn Store) {
    for round in 0..4 {
        let key = format!("race/{round}");
        let racers = (0..16).map(|racer| {
            let (key, body) = (key.clone(), pattern(10_000, racer + 1));
            async move { create(store, &key, body).await }
        });
        let outcomes = join_all(racers).await;
        let winners: Vec<_> = (0..16).filter(|racer| outcomes[*racer] == Created::New).collect();
        assert_eq!(winners.len(), 1, "round {round}: {} of 16 racing creates said New", winners.len());
        let winner = winners[0] as u64 + 1;
        assert_eq!(read(store, &key).await, pattern(10_000, winner), "the winner's bytes must be there");
    }
}

pub async fn an_empty_object_is_an_object(store: &dyn Store) {
    assert_eq!(create(store, "empty", Body::default()).await, Created::New);
    assert_eq!(create(store, "also", vec![Bytes::new(), Bytes::new()]).await, Created::New);

    assert_eq!(read(store, "empty").await.len(), 0);
    assert_eq!(read(store, "also").await.len(), 0);
    assert_eq!(store.head("empty").await.expect("head").info.bytes, 0);
    assert_eq!(list_all(store, "").await.expect("list").len(), 2);
    assert_eq!(create(store, "empty", text("more")).await, Created::Exists);
}

pub async fn ranges_are_half_open_and_cut_at_the_end(store: &dyn Store) {
    let body = pattern(300_000, 1);
    let pieces = vec![body.slice(..100_000), body.slice(100_000..100_001), body.slice(100_001..)];
    create(store, "a", pieces).await;

    for range in [0..1, 0..300_000, 99_999..100_002, 299_999..300_000, 1..299_999] {
        let stream = store.get("a", Some(range.clone())).await.expect("ranged get");
        assert_eq!(stream.head.info.bytes, 300_000, "{range:?}: the head is of the whole object");
        let got = stream.collect().await.expect("body");
        assert_eq!(got, body.slice(range.start as usize..range.end as usize), "{range:?}");
    }
    for range in [299_990..300_010, 0..u64::MAX / 2] {
        let got = store.get("a", Some(range.clone())).await.expect("cut range").collect().await.expect("body");
        assert_eq!(got, body.slice(range.start as usize..), "{range:?} must be cut at the end");
    }
    for range in [0..0, 7..7, 300_000..300_000, 300_000..300_001, 400_000..500_000] {
        match store.get("a", Some(range.clone())).await {
            Ok(stream) => assert_eq!(stream.collect().await.expect("body").len(), 0, "{range:?}"),
            Err(error) => assert_eq!(error.kind, StoreErrorKind::Range, "{range:?}: {error:?}"),
        }
    }
}

pub async fn what_is_not_there_is_not_found(store: &dyn Store) {
    create(store, "a/b", text("x")).await;

    for key in ["b", "a/c", "a/b.lz4", "c/d/e"] {
        assert_eq!(kind_of_get(store, key).await, StoreErrorKind::NotFound, "get {key}");
        let ranged = store.get(key, Some(0..1)).await.map(|_| ()).expect_err("ranged get");
        assert_eq!(ranged.kind, StoreErrorKind::NotFound, "ranged get {key}");
        let head = store.head(key).await.expect_err("head");
        assert_eq!(head.kind, StoreErrorKind::NotFound, "head {key}");
    }
    // The directory part of a name is not an object.
    assert_eq!(kind_of_get(store, "a").await, StoreErrorKind::NotFound);
    assert!(list_all(store, "c/").await.expect("list").is_empty());
    assert_eq!(store.list_level("c/").await.expect("level"), Default::default());
}

pub async fn a_body_of_many_pieces_is_one_object(store: &dyn Store) {
    let whole = pattern(2_000_000, 2);
    let pieces: Vec<Bytes> = whole.chunks(997).map(|piece| whole.slice_ref(piece)).collect();
    assert!(pieces.len() > 2_000);

    assert_eq!(create(store, "a", pieces).await, Created::New);

    assert!(read(store, "a").await == whole, "2,000 pieces must come back in order");
}

pub async fn a_large_object_streams_in_bounded_pieces(store: &dyn Store) {
    let whole = pattern(20 << 20, 3);
    create(store, "a", whole.clone()).await;

    let mut stream = store.get("a", None).await.expect("get").bytes;
    let mut position = 0;
    while let Some(piece) = stream.next().await {
        let piece = piece.expect("piece");
        assert!(whole[position..].starts_with(&piece), "wrong bytes at {position}");
        position += piece.len();
    }
    assert_eq!(position, whole.len());
}

async fn fill(store: &dyn Store, keys: &[String]) {
    for some in keys.chunks(50) {
        join_all(some.iter().map(|key| create(store, key, Bytes::new()))).await;
    }
}

pub async fn a_listing_names_every_object_once(store: &dyn Store) {
    // Names that sort differently as strings and as paths, over several directories and pages.
    let mut keys: Vec<String> = (0..1_050).map(|n| format!("w/{:04}/{n:08}.lz4", n / 300)).collect();
    keys.extend(["w", "w-1", "w.1", "wx"].map(|part| format!("{part}-x/a")));
    keys.extend(["w/0001-a/b", "w/0001.a/b", "w/0001=/b", "w/00010/b", "w/last"].map(String::from));
    fill(store, &keys).await;

    let mut below: Vec<String> = Vec::new();
    let mut token = None;
    let mut pages = 0;
    loop {
        let page = store.list_page("w/", token).await.expect("page");
        below.extend(page.objects.into_iter().map(|info| info.key));
        pages += 1;
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert!(pages >= 2, "the test means to turn a page");
    let distinct: BTreeSet<String> = below.iter().cloned().collect();
    assert_eq!(distinct.len(), below.len(), "an object was listed twice");
    let expected: BTreeSet<String> = keys.iter().filter(|key| key.starts_with("w/")).cloned().collect();
    assert_eq!(distinct, expected);
    let all: BTreeSet<String> = list_all(store, "").await.expect("list").into_iter().map(|info| info.key).collect();
    assert_eq!(all, keys.into_iter().collect());
}

pub async fn a_level_shows_objects_and_prefixes(store: &dyn Store) {
    for key in ["main/cluster.json", "main/wal/1.history", "main/wal/1/a/x.lz4", "main/wal/1/b/y.lz4", "maint/x", "z"] {
        create(store, key, text(key)).await;
    }
    let level = async |prefix: &str| {
        let level = store.list_level(prefix).await.expect("level");
        let objects: BTreeSet<_> = level.objects.into_iter().map(|info| (info.key, info.bytes)).collect();
        let prefixes: BTreeSet<_> = level.prefixes.iter().cloned().collect();
        assert_eq!(prefixes.len(), level.prefixes.len(), "a prefix was listed twice");
        (objects, prefixes)
    };
    let keys = |keys: &[&str]| keys.iter().map(|key| (key.to_string(), key.len() as u64)).collect::<BTreeSet<_>>();
    let prefixes = |prefixes: &[&str]| prefixes.iter().map(|prefix| prefix.to_string()).collect::<BTreeSet<_>>();

    assert_eq!(level("").await, (keys(&["z"]), prefixes(&["main/", "maint/"])));
    assert_eq!(level("main/").await, (keys(&["main/cluster.json"]), prefixes(&["main/wal/"])));
    assert_eq!(level("main/wal/").await, (keys(&["main/wal/1.history"]), prefixes(&["main/wal/1/"])));
    assert_eq!(level("main/wal/1/").await, (keys(&[]), prefixes(&["main/wal/1/a/", "main/wal/1/b/"])));
    assert_eq!(level("main/nothing/").await, (keys(&[]), prefixes(&[])));
}

pub async fn a_long_level_is_whole(store: &dyn Store) {
    let mut keys: Vec<String> = (0..600).map(|n| format!("l/{n}")).collect();
    keys.extend((600..1_100).map(|n| format!("l/{n}/x")));
    fill(store, &keys).await;

    let level = store.list_level("l/").await.expect("level");

    assert_eq!((level.objects.len(), level.prefixes.len()), (600, 500));
}

pub async fn a_deleted_object_is_gone_and_deleting_again_is_fine(store: &dyn Store) {
    create(store, "a/b/c", text("x")).await;
    create(store, "a/d", text("y")).await;

    for _ in 0..2 {
        store.delete("a/b/c").await.expect("delete");
        assert_eq!(kind_of_get(store, "a/b/c").await, StoreErrorKind::NotFound);
        assert_eq!(store.list_level("a/").await.expect("level").prefixes, Vec::<String>::new());
    }
    store.delete("never/was").await.expect("delete of what never was");
    assert_eq!(read(store, "a/d").await, "y", "its neighbour must stay");
}

pub async fn a_name_is_free_again_after_deleting(store: &dyn Store) {
    create(store, "a/b", text("first")).await;
    store.delete("a/b").await.expect("delete");

    assert_eq!(create(store, "a/b", text("second")).await, Created::New);
    assert_eq!(read(store, "a/b").await, "second");
}

async fn begin(store: &dyn Store, key: &str) -> Box<dyn Upload> {
    store.begin_upload(key, Metadata::new()).await.unwrap_or_else(|error| panic!("begin {key}: {error:?}"))
}

pub async fn an_upload_appears_when_it_is_completed(store: &dyn Store) {
    let mut upload = begin(store, "base/1").await;
    upload.put_piece(text("bytes")).await.expect("piece");

    assert_eq!(kind_of_get(store, "base/1").await, StoreErrorKind::NotFound);
    assert!(list_all(store, "").await.expect("list").is_empty(), "an unfinished upload must not be listed");
    assert_eq!(store.list_level("").await.expect("level"), Default::default());

    assert_eq!(upload.complete().await.expect("complete"), Created::New);
    assert_eq!(read(store, "base/1").await, "bytes");
    assert_eq!(list_all(store, "").await.expect("list").len(), 1);
}

pub async fn an_upload_of_several_pieces_is_one_object(store: &dyn Store) {
    let mut upload = begin(store, "a").await;
    let piece_bytes = upload.piece_bytes_min().max(100_000);
    let whole = pattern(2 * piece_bytes + 12_345, 4);
    let pieces: Vec<Bytes> = whole.chunks(piece_bytes).map(|piece| whole.slice_ref(piece)).collect();

    for piece in &pieces {
        // Each piece is itself of several.
        let (head, tail) = (piece.slice(..1_000), piece.slice(1_000..));
        upload.put_piece(Body::from(vec![head, tail])).await.expect("piece");
    }
    assert_eq!(upload.complete().await.expect("complete"), Created::New);

    assert!(read(store, "a").await == whole, "the pieces must come back in order");
    let start = piece_bytes as u64 - 10;
    let across = store.get("a", Some(start..start + 20)).await.expect("get").collect().await.expect("body");
    assert_eq!(across, whole.slice(piece_bytes - 10..piece_bytes + 10));
}

pub async fn an_upload_without_a_piece_is_an_empty_object(store: &dyn Store) {
    let mut upload = begin(store, "a").await;
    assert_eq!(upload.complete().await.expect("complete"), Created::New);
    assert_eq!(read(store, "a").await.len(), 0);
}

pub async fn an_upload_does_not_replace_an_object(store: &dyn Store) {
    let mut upload = begin(store, "a").await;
    upload.put_piece(text("from the upload")).await.expect("piece");
    create(store, "a", text("created meanwhile")).await;

    assert_eq!(upload.complete().await.expect("complete"), Created::Exists);
    assert_eq!(read(store, "a").await, "created meanwhile");

    let mut late = begin(store, "a").await;
    late.put_piece(text("later")).await.expect("piece");
    assert_eq!(late.complete().await.expect("complete"), Created::Exists);
    assert_eq!(read(store, "a").await, "created meanwhile");
}

pub async fn of_racing_uploads_exactly_one_is_new(store: &dyn Store) {
    let racers = (0..8).map(|racer| async move {
        let mut upload = begin(store, "a").await;
        upload.put_piece(pattern(1_000, racer + 1).into()).await.expect("piece");
        upload.complete().await.expect("complete")
    });
    let outcomes = join_all(racers).await;
    let winners: Vec<_> = (0..8).filter(|racer| outcomes[*racer] == Created::New).collect();
    assert_eq!(winners.len(), 1, "{} of 8 racing uploads said New", winners.len());
    assert_eq!(read(store, "a").await, pattern(1_000, winners[0] as u64 + 1));
}

pub async fn an_aborted_upload_leaves_nothing(store: &dyn Store) {
    let mut aborted = begin(store, "a").await;
    aborted.put_piece(text("x")).await.expect("piece");
    aborted.abort().await.expect("abort");
    let mut dropped = begin(store, "b").await;
    dropped.put_piece(text("x")).await.expect("piece");
    drop(dropped);

    assert!(list_all(store, "").await.expect("list").is_empty());
    assert_eq!(create(store, "a", text("y")).await, Created::New);
}

pub async fn illegal_names_are_refused(store: &dyn Store) {
    let long = "x".repeat(300);
    for key in ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".tmp/a", "a b", "ä", "a\\b", &long]
    {
        assert!(store.create(key, text("x"), Metadata::new()).await.is_err(), "create {key:?}");
        assert!(store.get(key, None).await.is_err(), "get {key:?}");
        assert!(store.head(key).await.is_err(), "head {key:?}");
        assert!(store.delete(key).await.is_err(), "delete {key:?}");
        assert!(store.begin_upload(key, Metadata::new()).await.is_err(), "upload {key:?}");
    }
    for prefix in ["a", "/", "../", "a//", ".tmp/"] {
        assert!(store.list_page(prefix, None).await.is_err(), "list {prefix:?}");
        assert!(store.list_level(prefix).await.is_err(), "level {prefix:?}");
    }
    assert!(list_all(store, "").await.expect("list").is_empty());
}

pub async fn conditional_writes_are_found_to_be_honoured(store: &dyn Store) {
    assert_eq!(probe(store, "open/probe-1").await.expect("probe"), ConditionalWrites::Honoured);
    assert!(list_all(store, "").await.expect("list").is_empty(), "the probe must leave nothing");
}
