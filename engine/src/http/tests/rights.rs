//! Every route, asked by everybody.

use access::audit::{Outcome, verify};
use access::journal::Journal;

use super::*;

fn lenient() -> LimitsConfig {
    LimitsConfig {
        failed_logins: 100_000,
        requests_per_address: 100_000,
        requests_per_user: 100_000,
        ..LimitsConfig::default()
    }
}

fn acts(lab: &Lab) -> Vec<access::audit::Act> {
    let mut journal = Journal::read_only(lab.guard.audit().path()).unwrap();
    journal.read_on().unwrap().into_iter().map(|line| line.fact).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_closed_to_those_below_its_role() {
    let lab = Lab::new(lenient(), None).await;
    let tokens: Vec<(Role, String)> = Role::ALL.iter().map(|role| (*role, lab.token(*role))).collect();
    let (revoked_id, revoked) = lab.make(Role::Admin, 50, NOW.plus(DAY));
    lab.users.revoke(NOW, &revoked_id).unwrap();
    let (_, expired) = lab.make(Role::Admin, 51, NOW);
    let (_, removed) = lab.make(Role::Viewer, 52, NOW.plus(DAY));
    let wrong = format!("weir_{}_{}", "1".repeat(16), "0".repeat(64));
    let mut asked = 0;
    for route in routes::table() {
        let path = route.path.replace("{id}", "pump-1").replace("{name}", "x").replace("{table}", "telemetry");
        let path = path.replace("{command}", "c1");
        let what = format!("{} {path}", route.method);
        let closed = [None, Some(&revoked), Some(&expired), Some(&wrong)];
        for token in closed {
            let answer = lab.ask(route.method, &path, token.map(String::as_str), "").await;
            match route.rule.least {
                None => assert!(answer.status() != StatusCode::UNAUTHORIZED, "{what}"),
                Some(_) => {
                    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{what}");
                    assert_eq!(answer.headers()["www-authenticate"], "Bearer");
                    assert_eq!(answer.headers()["content-type"], "application/problem+json");
                }
            }
        }
        for (role, token) in &tokens {
            let status = lab.ask(route.method, &path, Some(token), "").await.status();
            let may = route.rule.least.is_none_or(|least| *role >= least);
            let refused = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
            assert_eq!(refused, !may, "{what} as {role}: {status}");
            assert!(status != StatusCode::METHOD_NOT_ALLOWED, "{what}");
            if !may {
                assert_eq!(status, StatusCode::FORBIDDEN, "{what} as {role}");
            }
            asked += 1;
        }
    }
    assert!(asked > 150, "{asked}");
    // What is no route tells nothing to nobody.
    let viewer = Some(tokens[0].1.as_str());
    assert_eq!(lab.ask("GET", "/v1/nothing", None, "").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(lab.ask("GET", "/v1/nothing", viewer, "").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(lab.ask("DELETE", "/v1/devices", None, "").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(lab.ask("DELETE", "/v1/devices", viewer, "").await.status(), StatusCode::METHOD_NOT_ALLOWED);
    // A user that goes takes its tokens with it, also those that are known by now.
    assert_eq!(lab.ask("GET", "/v1/devices", Some(&removed), "").await.status(), StatusCode::OK);
    lab.users.remove(NOW, "viewer").unwrap();
    assert_eq!(lab.ask("GET", "/v1/devices", Some(&removed), "").await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(lab.ask("GET", "/v1/devices", viewer, "").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_and_what_to_do() {
    let lab = Lab::new(lenient(), None).await;
    let viewer = lab.token(Role::Viewer);
    let (_, text) = lab.text("GET", "/v1/devices", None, "").await;
    assert!(detail(&text).contains("weir tokens create"), "{text}");
    let (_, text) = lab.query(&viewer, "SELECT 1").await;
    assert!(detail(&text).contains("needs analyst") && detail(&text).contains("weir users role viewer"), "{text}");
    let request = Request::builder().uri("/v1/devices").header("authorization", "Basic YTpi").body(Body::empty());
    assert_eq!(lab.router.clone().oneshot(request.unwrap()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_stand_in_the_trail_with_who_made_them() {
    let lab = Lab::new(lenient(), None).await;
    let (operator, admin, analyst) = (lab.token(Role::Operator), lab.token(Role::Admin), lab.token(Role::Analyst));
    let path = "/v1/devices/pump-1/shadow?by=somebody-else";
    let (status, text) = lab.text("PATCH", path, Some(&operator), r#"{"limit": 7}"#).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["metadata"]["desired"]["limit"]["by"], "operator", "the token says who it is: {text}");
    // It is durable by the time of the answer.
    let act = acts(&lab).pop().unwrap();
    assert_eq!((act.who.as_str(), act.role.as_str(), act.action.as_str()), ("operator", "operator", "shadow.set"));
    assert_eq!((act.subject.as_str(), act.outcome), ("devices/pump-1/shadow", Outcome::Ok));
    assert_eq!(act.detail, serde_json::json!({ "status": 200, "query": "by=somebody-else", "body": { "limit": 7 } }));

    let (status, _) = lab.text("PATCH", "/v1/devices/pump-1/shadow", Some(&operator), "[").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let act = acts(&lab).pop().unwrap();
    assert!(act.outcome == Outcome::Failed && act.reason.contains("merge patch"), "{act:?}");

    lab.ask("GET", "/v1/trail", Some(&operator), "").await;
    let (status, text) = lab.text("GET", "/v1/trail", Some(&admin), "").await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let verdict = verify(lab.guard.audit().path()).unwrap();
    let told: Verdict = serde_json::from_str(&text).unwrap();
    assert!(told.acts == 3 && told == verdict, "{told:?} {verdict:?}");
    let sql = "SELECT n, who, action, outcome, reason, origin FROM _audit ORDER BY n";
    let (_, text) = lab.query(&admin, sql).await;
    let rows: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&rows[2]["who"], &rows[2]["reason"]), (&"operator".into(), &"role".into()), "{text}");
    let (status, _) = lab.text("POST", "/v1/flush", Some(&operator), "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(lab.dir.path().join("tables/_audit").is_dir());
    let (_, again) = lab.query(&admin, "SELECT count(*) AS k, count(DISTINCT n) AS n, max(n) AS m FROM _audit").await;
    assert_eq!(serde_json::from_str::<Value>(&again).unwrap()[0], serde_json::json!({ "k": 4, "n": 4, "m": 4 }));
    // It is not for analysts, also when it is in files.
    let (status, text) = lab.query(&analyst, sql).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let (_, text) = lab.query(&analyst, "SELECT table_name FROM information_schema.tables").await;
    assert!(!text.contains("_audit") && text.contains("_dead_letters"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_want_something_of_a_device_goes_by_path() {
    let lab = Lab::new(lenient(), None).await;
    let (engineer, operator, admin) = (lab.token(Role::Engineer), lab.token(Role::Operator), lab.token(Role::Admin));
    let members = r#"{"devices": ["pump-1"]}"#;
    assert_eq!(lab.ask("PUT", "/v1/groups/all", Some(&operator), members).await.status(), StatusCode::OK);
    let (app, group) = ("/v1/devices/pump-1/shadow/app", "/v1/groups/all/shadow?name=app");
    let (free, bound, both) = (r#"{"rate": 1}"#, r#"{"safety": {"limit": 9}}"#, r#"{"rate": 2, "safety": null}"#);
    for (path, token, body, expected) in [
        (app, &engineer, free, StatusCode::FORBIDDEN),
        (app, &operator, free, StatusCode::OK),
        (app, &operator, bound, StatusCode::FORBIDDEN),
        (app, &operator, both, StatusCode::FORBIDDEN),
        (group, &operator, bound, StatusCode::FORBIDDEN),
        (group, &admin, bound, StatusCode::OK),
        (app, &admin, bound, StatusCode::OK),
    ] {
        let (status, text) = lab.text("PATCH", path, Some(token), body).await;
        assert_eq!(status, expected, "{path} {body}: {text}");
        if status == StatusCode::FORBIDDEN {
            let needed = if body == free { "role operator" } else { "role admin" };
            assert!(detail(&text).contains(needed) && detail(&text).contains("nothing was changed"), "{text}");
        }
    }
    assert_eq!(lab.ask("DELETE", app, Some(&operator), "").await.status(), StatusCode::FORBIDDEN);
    let (_, text) = lab.text("GET", app, Some(&operator), "").await;
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["desired"], serde_json::json!({ "rate": 1, "safety": { "limit": 9 } }), "{text}");
    let refused = acts(&lab).into_iter().rfind(|act| act.action == "shadow.delete").unwrap();
    assert!(refused.outcome != Outcome::Ok && refused.reason.contains("safety"), "{refused:?}");
    assert_eq!(lab.ask("DELETE", app, Some(&admin), "").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_stands_for_its_user_and_its_role() {
    let whose: Certificates = Arc::new(|der| match der {
        b"ada" => Ok("ada".to_owned()),
        _ => Err(("revoked".to_owned(), "this certificate is revoked: lost".to_owned())),
    });
    let lab = Lab::new(lenient(), Some(whose)).await;
    let ask = async |der: &[u8], path: &str| {
        let peer = Peer { address: "127.0.0.1:9".parse().unwrap(), certificate: Some(Arc::from(der)), secure: true };
        let request = Request::builder().uri(path).extension(peer).body(Body::empty()).unwrap();
        lab.router.clone().oneshot(request).await.unwrap().status()
    };
    assert_eq!(ask(b"ada", "/v1/devices").await, StatusCode::UNAUTHORIZED, "nobody has added her");
    lab.users.add(NOW, "ada", Role::Viewer).unwrap();
    assert_eq!(ask(b"ada", "/v1/devices").await, StatusCode::OK);
    assert_eq!(ask(b"ada", "/v1/trail").await, StatusCode::FORBIDDEN);
    assert_eq!(ask(b"eve", "/v1/devices").await, StatusCode::UNAUTHORIZED);
}
