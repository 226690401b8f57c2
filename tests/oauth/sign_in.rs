//! A sign-in that is kept: each answer brings the refresh token for the next one.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use super::{Desk, REFRESH, TOKEN, endpoint::Answer, pass, signed_in};

fn token(number: u32) -> Result<String, String> {
    Ok(format!("{TOKEN}-{number}"))
}

fn used(desk: &Desk) -> Vec<String> {
    desk.endpoint.asked().iter().map(|asked| asked.form["refresh_token"].clone()).collect()
}

#[tokio::test]
async fn each_refresh_token_brings_its_successor() {
    let mut desk = Desk::with(signed_in).await;
    desk.endpoint.answers([
        Answer::tokens(1, 3600, "second"),
        // Nothing new: the old one goes on.
        Answer::token(2, 3600),
        Answer::tokens(3, 3600, "third"),
    ]);
    let before = desk.target.credential().unwrap();
    assert_eq!(desk.token().await, token(1));
    let kept = fs::read_to_string(desk.kept()).unwrap();
    assert!(kept.contains("\"second\"") && kept.contains("\"scope\": \"SMTP.Send\""), "{kept}");
    assert_eq!(fs::metadata(desk.kept()).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(desk.target.credential().unwrap(), before, "it is the same sign-in");
    let ends = desk.target.credential_expires().unwrap();
    assert_eq!((ends.duration_since(jiff::Timestamp::now()).as_hours() + 1) / 24, 90);
    pass(3600).await;
    assert_eq!(desk.token().await, token(2));
    desk.restart();
    assert_eq!(desk.token().await, token(3));
    assert_eq!(used(&desk), [REFRESH, "second", "second"]);
    let form = &desk.endpoint.asked()[0].form;
    assert_eq!(form["grant_type"], "refresh_token");
    assert_eq!(form.len(), 4, "{form:?}");
}

#[tokio::test]
async fn another_refresh_token_in_the_configuration_goes_before_what_came_of_the_former() {
    let mut desk = Desk::with(signed_in).await;
    desk.endpoint.answers([1, 2, 3].map(|n| Answer::tokens(n, 3600, &format!("next-{n}"))));
    desk.token().await.unwrap();
    let before = desk.target.credential().unwrap();
    fs::write(desk.folder.path().join("refresh-token"), "a new one").unwrap();
    assert_ne!(desk.target.credential().unwrap(), before);
    assert_eq!(
        desk.token().await,
        token(2),
        "of a new sign-in: the old token may be somebody else's"
    );
    desk.restart();
    desk.token().await.unwrap();
    assert_eq!(used(&desk), [REFRESH, "a new one", "next-2"]);
}

/// As `smtp-uplift login` does beside a running relay.
#[tokio::test]
async fn a_new_sign_in_is_taken_up_by_itself() {
    let desk = Desk::with(signed_in).await;
    desk.endpoint.answers([
        Answer::tokens(1, 3600, "second"),
        Answer::error("invalid_grant", "AADSTS700082: The refresh token has expired"),
        Answer::tokens(2, 3600, "fourth"),
    ]);
    desk.token().await.unwrap();
    pass(3600).await;
    let said = desk.token().await.unwrap_err();
    assert!(said.contains("sign in again: smtp-uplift login scanner@example.com"), "{said}");
    let before = desk.target.credential().unwrap();
    let kept = fs::read_to_string(desk.kept()).unwrap();
    let id = kept.split("\"id\": \"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(desk.kept(), kept.replace("\"second\"", "\"third\"").replace(id, "somebody"))
        .unwrap();
    assert_ne!(desk.target.credential().unwrap(), before);
    assert_eq!(desk.token().await, token(2), "the wait is over");
    assert_eq!(used(&desk), [REFRESH, "second", "third"]);
}

#[tokio::test]
async fn a_sign_in_that_comes_while_the_endpoint_is_asked_is_not_lost() {
    let desk = Desk::with(signed_in).await;
    desk.endpoint
        .answers([Answer::tokens(1, 3600, "second"), Answer::tokens(2, 3600, "lost").held()]);
    desk.token().await.unwrap();
    pass(3400).await;
    assert_eq!(desk.token().await, token(1));
    desk.endpoint.asked_times(2).await;
    let kept = fs::read_to_string(desk.kept()).unwrap();
    let id = kept.split("\"id\": \"").nth(1).unwrap().split('"').next().unwrap();
    let new = kept.replace("\"second\"", "\"third\"").replace(id, "somebody");
    fs::write(desk.kept(), &new).unwrap();
    desk.endpoint.answers([Answer::tokens(3, 3600, "fourth")]);
    desk.endpoint.let_go();
    while desk.token().await != token(3) {
        tokio::task::yield_now().await;
    }
    assert_eq!(used(&desk), [REFRESH, "second", "third"]);
}

#[tokio::test]
async fn without_a_sign_in_somebody_is_told_to_sign_in() {
    let desk = Desk::with(|endpoint, folder| smtp_uplift::config::OAuth {
        refresh_token: None,
        ..signed_in(endpoint, folder)
    })
    .await;
    let error = desk.tokens().token().await.unwrap_err();
    let said = error.to_string();
    assert!(said.contains("nobody has signed in yet for scanner@example.com; sign in: smtp-uplift login scanner@example.com"), "{said}");
    assert!(error.is_local());
    fs::create_dir_all(desk.kept().parent().unwrap()).unwrap();
    fs::write(desk.kept(), format!("{{\"refresh_token\": \"{REFRESH}\"")).unwrap();
    let said = desk.token().await.unwrap_err();
    assert!(said.contains("scanner@example.com.json holds no sign-in; sign in again"), "{said}");
    assert!(desk.endpoint.asked().is_empty());
}

/// The configured refresh token is asked with for the first time, and `smtp-uplift login` is quicker.
#[tokio::test]
async fn a_sign_in_that_comes_during_the_first_request_is_not_lost() {
    let desk = Desk::with(signed_in).await;
    desk.endpoint.answers([Answer::tokens(1, 3600, "second")]);
    desk.token().await.unwrap();
    let kept = fs::read_to_string(desk.kept()).unwrap();
    let id = kept.split("\"id\": \"").nth(1).unwrap().split('"').next().unwrap();
    let new = kept.replace("\"second\"", "\"third\"").replace(id, "somebody");

    let desk = Desk::with(signed_in).await;
    desk.endpoint.answers([Answer::tokens(1, 3600, "lost").held(), Answer::token(2, 3600)]);
    let tokens = desk.tokens().clone();
    let asking = tokio::task::JoinSet::from_iter([async move { tokens.token().await.map(|_| ()) }]);
    desk.endpoint.asked_times(1).await;
    fs::create_dir_all(desk.kept().parent().unwrap()).unwrap();
    fs::write(desk.kept(), &new).unwrap();
    desk.endpoint.let_go();
    asking.join_all().await.remove(0).unwrap();
    assert_eq!(fs::read_to_string(desk.kept()).unwrap(), new);
    assert_eq!(desk.token().await, token(2));
    assert_eq!(used(&desk), [REFRESH, "third"]);
}

/// As when the disk is full: the folder of the sign-ins cannot be entered.
#[tokio::test]
async fn what_cannot_be_written_is_used_and_written_later() {
    let mut desk = Desk::with(signed_in).await;
    desk.endpoint
        .answers([1, 2, 3].map(|number| Answer::tokens(number, 3600, &format!("next-{number}"))));
    let state = desk.folder.path().join("state");
    fs::write(&state, "").unwrap();
    for _ in 0..3 {
        assert_eq!(desk.token().await, token(1));
    }
    assert_eq!(desk.endpoint.asked().len(), 1);
    pass(3600).await;
    assert_eq!(desk.token().await, token(2), "with what came with the first one");
    fs::remove_file(&state).unwrap();
    pass(11).await;
    assert_eq!(desk.token().await, token(2));
    let folder = desk.kept().parent().unwrap().to_owned();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    assert!(fs::read_to_string(desk.kept()).unwrap().contains("\"next-2\""));
    desk.restart();
    assert_eq!(desk.token().await, token(3));
    assert_eq!(used(&desk), [REFRESH, "next-1", "next-2"]);
}

/// The lock cannot be opened while the sign-in can be read.
#[tokio::test]
async fn a_sign_in_in_memory_gives_way_to_a_newer_one() {
    let desk = Desk::with(signed_in).await;
    desk.endpoint.answers(
        [1, 2, 3, 4].map(|number| Answer::tokens(number, 3600, &format!("next-{number}"))),
    );
    assert_eq!(desk.token().await, token(1));
    let lock = desk.kept().with_file_name("lock");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    for number in [2, 3] {
        pass(3600).await;
        assert_eq!(desk.token().await, token(number));
    }
    let kept = fs::read_to_string(desk.kept()).unwrap();
    assert!(kept.contains("\"next-1\""), "{kept}");
    assert_eq!(used(&desk), [REFRESH, "next-1", "next-2"]);
    let id = kept.split("\"id\": \"").nth(1).unwrap().split('"').next().unwrap();
    let new = kept.replace("\"next-1\"", "\"newer\"").replace(id, "somebody");
    fs::write(desk.kept(), &new).unwrap();
    assert_eq!(desk.token().await, token(4));
    assert_eq!(used(&desk)[3], "newer");
}

#[tokio::test]
async fn a_refresh_token_is_kept_though_the_access_token_is_none() {
    let desk = Desk::with(signed_in).await;
    let strange = serde_json::json!({
        "token_type": "mac", "access_token": "a", "expires_in": 3600, "refresh_token": "second"
    });
    desk.endpoint.answers([Answer::json(200, &strange), Answer::tokens(1, 3600, "third")]);
    let said = desk.token().await.unwrap_err();
    assert!(said.contains("not of the type Bearer"), "{said}");
    assert_eq!(desk.token().await.unwrap_err(), said, "it is left alone for a while");
    assert_eq!(desk.endpoint.asked().len(), 1);
    pass(7).await;
    assert_eq!(desk.token().await, token(1));
    assert_eq!(used(&desk), [REFRESH, "second"]);
}
