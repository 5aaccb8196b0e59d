//! What analysts cannot do with SQL.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn sql_reads_the_tables_and_nothing_else() {
    let lab = Lab::new(LimitsConfig::default(), None).await;
    let token = lab.token(Role::Analyst);
    let secret = lab.dir.path().join("secret.csv");
    std::fs::write(&secret, "word\ncanary-4711\n").unwrap();
    let out = lab.dir.path().join("out");
    let (secret, out) = (secret.display().to_string(), out.display().to_string());
    let users = lab.dir.path().join("access/users.journal").display().to_string();
    let statements = [
        format!("CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{secret}'"),
        format!("CREATE EXTERNAL TABLE x (word TEXT) STORED AS CSV LOCATION 'file://{secret}'"),
        format!("COPY (SELECT 1) TO '{out}.parquet'"),
        format!("COPY _losses TO '{out}' STORED AS CSV"),
        "INSERT INTO _losses VALUES (1)".to_owned(),
        "INSERT INTO _losses SELECT * FROM _losses".to_owned(),
        "UPDATE _losses SET reason = 1".to_owned(),
        "DELETE FROM _losses".to_owned(),
        "TRUNCATE TABLE _losses".to_owned(),
        "DROP TABLE _losses".to_owned(),
        "CREATE TABLE x AS SELECT 1".to_owned(),
        "CREATE VIEW x AS SELECT 1".to_owned(),
        "CREATE SCHEMA x".to_owned(),
        "CREATE DATABASE x".to_owned(),
        "CREATE FUNCTION f(BIGINT) RETURNS BIGINT RETURN $1 + 1".to_owned(),
        "SET datafusion.execution.batch_size = 1".to_owned(),
        "RESET datafusion.execution.batch_size".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        "EXECUTE p".to_owned(),
        "START TRANSACTION".to_owned(),
        format!("SELECT * FROM '{secret}'"),
        format!("SELECT * FROM \"{secret}\""),
        format!("SELECT * FROM 'file://{secret}'"),
        format!("SELECT * FROM '{users}'"),
        "SELECT * FROM 'http://127.0.0.1:1/x.parquet'".to_owned(),
        "SELECT * FROM 's3://bucket/x.parquet'".to_owned(),
        format!("SELECT * FROM read_csv('{secret}')"),
        format!("SELECT * FROM read_parquet('{secret}')"),
        format!("SELECT * FROM parquet_metadata('{secret}')"),
        format!("SELECT * FROM csv('{secret}')"),
        format!("SELECT pg_read_file('{secret}')"),
        format!("SELECT load_file('{secret}')"),
        format!("EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}.csv'"),
        format!("EXPLAIN CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '{secret}'"),
        format!("WITH x AS (SELECT 1) SELECT * FROM x, '{secret}'"),
        "SELECT 1; SELECT 2".to_owned(),
        format!("SELECT 1; COPY (SELECT 1) TO '{out}.csv'"),
    ];
    for sql in statements {
        let (status, text) = lab.query(&token, &sql).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{sql}: {text}");
        assert!(!text.contains("canary-4711") && !text.contains("$argon2id$"), "{sql}: {text}");
        assert!(detail(&text).len() > 10, "{sql}: {text}");
    }
    let left: Vec<_> = std::fs::read_dir(lab.dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("out")), "{left:?}");
    // And what they are for works.
    let (status, text) = lab.query(&token, "SELECT count(*) AS n FROM _losses").await;
    assert_eq!((status, text.trim()), (StatusCode::OK, "[{\"n\":0}]"));
    let (status, text) = lab.query(&token, "SHOW TABLES").await;
    assert!(status == StatusCode::OK && text.contains("_dead_letters"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_wants_too_much_is_told_which_limit_it_met() {
    let limits = LimitsConfig {
        query_rows: 1000,
        query_memory: 32 << 20,
        query_time: Duration::from_secs(4),
        ..LimitsConfig::default()
    };
    let lab = Lab::new(limits, None).await;
    let token = lab.token(Role::Analyst);
    let series = "SELECT a.value AS v FROM generate_series(1, 100000) a";
    for (sql, status, key) in [
        (series.to_owned(), StatusCode::PAYLOAD_TOO_LARGE, "limits.query_rows"),
        (
            format!(
                "SELECT count(DISTINCT a.value * 100000 + b.value) FROM ({series}) x, generate_series(1, 9) a, generate_series(1, 100) b"
            ),
            StatusCode::INSUFFICIENT_STORAGE,
            "limits.query_memory",
        ),
        (
            "SELECT count(*) FROM generate_series(1, 100000000000) WHERE value % 7 = 3".to_owned(),
            StatusCode::REQUEST_TIMEOUT,
            "limits.query_time",
        ),
        ("SELECT repeat('x', 100000000) FROM generate_series(1, 100)".to_owned(), StatusCode::BAD_REQUEST, "repeat"),
        ("SELECT lpad('x', 2000000000, 'y')".to_owned(), StatusCode::BAD_REQUEST, "lpad"),
        ("SELECT array_repeat(1, 2000000000)".to_owned(), StatusCode::BAD_REQUEST, "array_repeat"),
    ] {
        let (found, text) = lab.query(&token, &sql).await;
        assert_eq!(found, status, "{sql}: {text}");
        assert!(detail(&text).contains(key), "{sql}: {text}");
    }
}
