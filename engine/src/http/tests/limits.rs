//! Who asks too much is told how long to wait, and nobody else notices.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_user_and_of_one_address_are_bounded() {
    let limits = LimitsConfig { requests_per_user: 5, requests_per_address: 20, ..LimitsConfig::default() };
    let lab = Lab::new(limits, None).await;
    let (viewer, admin) = (lab.token(Role::Viewer), lab.token(Role::Admin));
    let ask = async |token: Option<&str>, path: &str| lab.ask("GET", path, token, "").await;
    let mut refused = Vec::new();
    for _ in 0..14 {
        let answer = ask(Some(&viewer), "/v1/groups").await;
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            refused.push(answer);
        }
    }
    assert!((2..=4).contains(&refused.len()), "{}", refused.len());
    let answer = refused.pop().unwrap();
    assert_eq!(answer.headers()["retry-after"], "1");
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    assert!(detail(std::str::from_utf8(&body).unwrap()).contains("limits.requests_per_user"));
    assert_eq!(ask(Some(&admin), "/v1/groups").await.status(), StatusCode::OK, "another user");
    let mut statuses = Vec::new();
    for _ in 0..60 {
        statuses.push(ask(None, "/healthz").await.status());
    }
    assert!(statuses.contains(&StatusCode::TOO_MANY_REQUESTS), "{statuses:?}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask(Some(&viewer), "/v1/groups").await.status(), StatusCode::OK, "it passes");
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_tokens_ends_soon_and_stops_nobody_who_is_known() {
    let limits = LimitsConfig { failed_logins: 6, ..LimitsConfig::default() };
    let lab = Lab::new(limits, None).await;
    let token = lab.token(Role::Viewer);
    assert_eq!(lab.ask("GET", "/v1/groups", Some(&token), "").await.status(), StatusCode::OK);
    // The right id, so that each would have to be computed.
    let mut statuses = Vec::new();
    for i in 0..12 {
        let guess = format!("{}{i:02}", &token[..token.len() - 2]);
        statuses.push(lab.ask("GET", "/v1/groups", Some(&guess), "").await.status());
    }
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert!((6..=8).contains(&count(StatusCode::UNAUTHORIZED)), "{statuses:?}");
    assert!(count(StatusCode::TOO_MANY_REQUESTS) >= 4, "{statuses:?}");
    assert_eq!(lab.ask("GET", "/v1/groups", Some(&token), "").await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_queries_at_a_time_are_bounded() {
    let limits = LimitsConfig { body: 4096, queries: 1, query_time: Duration::from_secs(3), ..LimitsConfig::default() };
    let lab = Arc::new(Lab::new(limits, None).await);
    let (analyst, admin) = (lab.token(Role::Analyst), lab.token(Role::Admin));
    let (status, text) = lab.query(&analyst, &format!("SELECT '{}'", "x".repeat(5000))).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(detail(&text).contains("limits.body"), "{text}");
    let slow = "SELECT count(*) FROM generate_series(1, 100000000000) WHERE value % 7 = 3";
    let first = tokio::spawn({
        let (lab, analyst) = (lab.clone(), analyst.clone());
        async move { lab.query(&analyst, slow).await.0 }
    });
    tokio::time::sleep(Duration::from_millis(800)).await;
    let (status, text) = lab.query(&analyst, "SELECT 1").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{text}");
    assert!(detail(&text).contains("limits.queries"), "{text}");
    assert_eq!(lab.query(&admin, "SELECT 1 AS x").await.0, StatusCode::OK, "another user");
    assert_eq!(first.await.unwrap(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(lab.query(&analyst, "SELECT 1 AS x").await.0, StatusCode::OK);
}
