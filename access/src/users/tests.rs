//! A token is worth what its user is worth now, and only to who has its secret.

use super::*;

const DAY: i64 = 86_400_000_000_000;

fn wanted(user: &str, role: Option<Role>, expires: i64) -> Wanted {
    Wanted { user: user.to_owned(), name: "test".to_owned(), role, expires: Timestamp(expires) }
}

fn make(users: &Users, n: u8, wanted: Wanted) -> Result<(String, Secret), UsersError> {
    users.create(Timestamp(1), wanted, (&[n; 8], &[n; 32], &[n; 16]))
}

#[test]
fn a_token_stands_for_its_user_until_it_is_revoked_expired_or_its_user_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let users = Users::open(dir.path()).unwrap();
    users.add(Timestamp(1), "ada", Role::Operator).unwrap();
    let (id, text) = make(&users, 1, wanted("ada", None, DAY)).unwrap();
    let (_, less) = make(&users, 2, wanted("ada", Some(Role::Viewer), DAY)).unwrap();
    let now = Timestamp(5);
    let principal = |role| Ok(Principal { name: "ada".to_owned(), role });
    assert_eq!(users.verify(&text.0, now), principal(Role::Operator));
    assert_eq!(users.verify(&less.0, now), principal(Role::Viewer));
    assert_eq!(users.verify(&text.0, Timestamp(DAY)), Err(Refusal::Expired));

    // Another process: follows, and takes rights away from tokens that are there.
    let beside = Users::open(dir.path()).unwrap();
    beside.set_role(Timestamp(2), "ada", Role::Analyst).unwrap();
    assert_eq!(users.verify(&text.0, now), principal(Role::Operator), "not yet read");
    users.read_on().unwrap();
    assert_eq!(users.verify(&text.0, now), principal(Role::Analyst));
    assert_eq!(beside.revoke(Timestamp(3), &id).unwrap(), "ada");
    users.read_on().unwrap();
    assert_eq!(users.verify(&text.0, now), Err(Refusal::Revoked));
    assert!(beside.revoke(Timestamp(3), &id).unwrap_err().to_string().contains("already"));

    users.remove(Timestamp(4), "ada").unwrap();
    assert_eq!(users.verify(&less.0, now), Err(Refusal::Unknown));
    users.add(Timestamp(5), "ada", Role::Admin).unwrap();
    assert_eq!(users.verify(&less.0, now), Err(Refusal::Unknown), "another ada");
    assert_eq!(users.look(|state| state.named("ada")), principal(Role::Admin));
    assert_eq!(users.look(|state| state.named("bob")), Err(Refusal::NoUser));
}

#[test]
fn only_the_whole_secret_counts_and_it_is_not_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let users = Users::open(dir.path()).unwrap();
    users.add(Timestamp(1), "ada", Role::Viewer).unwrap();
    let (id, text) = make(&users, 7, wanted("ada", None, DAY)).unwrap();
    let (_, secret) = parts(&text.0).unwrap();
    let file = std::fs::read_to_string(dir.path().join("access/users.journal")).unwrap();
    assert!(!file.contains(secret) && file.contains("$argon2id$") && file.contains(&id));
    assert!(!format!("{text:?}").contains(secret));
    let mut wrong = text.0.clone();
    wrong.replace_range(wrong.len() - 1.., "0");
    for other in
        [wrong.as_str(), "", "weir_", &text.0[..text.0.len() - 1], &text.0.to_uppercase(), &format!("{} ", text.0)]
    {
        assert_eq!(users.verify(other, Timestamp(2)), Err(Refusal::Unknown), "{other}");
    }
}

#[test]
fn changes_that_make_no_sense_are_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let users = Users::open(dir.path()).unwrap();
    users.add(Timestamp(1), "ada", Role::Viewer).unwrap();
    let refused = |done: Result<(), UsersError>, why: &str| {
        let error = done.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(users.add(Timestamp(1), "ada", Role::Admin), "weir users role ada");
    refused(users.add(Timestamp(1), "a da", Role::Admin), "no name of a user");
    refused(users.set_role(Timestamp(1), "bob", Role::Admin), "there are: ada");
    refused(users.remove(Timestamp(1), "bob"), "there are: ada");
    refused(users.revoke(Timestamp(1), "0102").map(drop), "weir tokens list");
    refused(make(&users, 1, wanted("bob", None, DAY)).map(drop), "no user");
    refused(make(&users, 1, wanted("ada", Some(Role::Admin), DAY)).map(drop), "cannot be admin");
    assert_eq!(Users::open(dir.path()).unwrap().look(|state| (state.users().count(), state.tokens().count())), (1, 0));
}

#[test]
fn facts_of_the_last_version_are_read() {
    for text in [
        r#"{"user":{"name":"ada","role":"admin"}}"#,
        r#"{"removed":{"name":"ada"}}"#,
        r#"{"token":{"id":"01","user":"ada","expires":5,"hash":"x"}}"#,
        r#"{"revoked":{"id":"01"}}"#,
    ] {
        let fact: Fact = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&fact).unwrap(), text);
    }
    assert_eq!(Role::ALL.map(|role| Role::from_name(role.as_str())), Role::ALL.map(Some));
}
