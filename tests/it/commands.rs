//! The command line: what it refuses, what it says, how it starts and stops.

use std::net::TcpListener;
use std::process::Output;
use std::time::Duration;

use futures_util::future::join_all;
use onrush::dev::demo;
use tokio::process::Command;

use crate::support::{Harness, Options};

/// Runs `onrush` with these settings alone.
async fn onrush(args: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    command.args(args).env_clear().envs(settings.iter().copied()).kill_on_drop(true);
    // Whose certificates are trusted is no setting of ours.
    command.envs(std::env::var_os("SSL_CERT_FILE").map(|file| ("SSL_CERT_FILE", file)));
    command.output().await.expect("onrush")
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const NO_SERVERS: [(&str, &str); 3] = [
    ("DATABASE_URL", "mysql://root@127.0.0.1:1/none"),
    ("REDIS_URL", "redis://127.0.0.1:1"),
    ("ONRUSH_AUTH__JWT_SECRET", "9f2b7c1e5a8d4036b1c9e7f20a6d8354"),
];

#[tokio::test]
async fn serve_names_every_missing_setting_with_what_it_should_look_like() {
    let output = onrush(&["serve"], &[]).await;
    assert!(!output.status.success());
    let text = errors(&output);
    for part in ["DATABASE_URL", "mysql://user:password@host:3306/database", "REDIS_URL", "ONRUSH_AUTH__JWT_SECRET"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn serve_names_every_bad_setting_of_the_environment_and_of_a_file_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("onrush.toml");
    std::fs::write(&file, "[http]\ndrain_s = 0\nlissten = \"x\"\n[log]\nformat = \"xml\"\n").unwrap();
    let settings = [
        ("ONRUSH_CONFIG", file.to_str().unwrap()),
        ("ONRUSH_HTTP__TIMEOUT_S", "abc"),
        ("ONRUSH_HTTP__TIMEOUT", "10"),
        ("ONRUSH_LOG__FILTER", "info,sqlx=loud"),
        ("ONRUSH_TIME_ZONE", ""),
        ("DATABASE_URL", "postgres://here"),
    ];
    let output = onrush(&["serve"], &settings).await;
    assert!(!output.status.success());
    let text = errors(&output);
    let file = file.display();
    for line in [
        "DATABASE_URL must be the database's address, such as mysql://user:password@host:3306/database".to_owned(),
        "REDIS_URL is not set; it must be Redis's address, such as redis://:password@host:6379/0".to_owned(),
        "ONRUSH_AUTH__JWT_SECRET is not set; it must be at least 32 bytes".to_owned(),
        "ONRUSH_HTTP__TIMEOUT_S must be a whole number from 1 to 300, such as 10".to_owned(),
        "ONRUSH_HTTP__TIMEOUT is not a setting; did you mean ONRUSH_HTTP__TIMEOUT_S?".to_owned(),
        format!("ONRUSH_HTTP__DRAIN_S (http.drain_s in {file}) must be a whole number from 1 to 600, such as 25"),
        format!("ONRUSH_HTTP__LISSTEN (http.lissten in {file}) is not a setting; did you mean ONRUSH_HTTP__LISTEN?"),
        format!("ONRUSH_LOG__FORMAT (log.format in {file}) must be one of: pretty, json"),
        "ONRUSH_LOG__FILTER must be a filter of log lines, such as info,sqlx=warn".to_owned(),
    ] {
        assert!(text.contains(&format!("- {line}")), "no {line:?} in {text}");
    }
    assert_eq!(text.matches("\n  - ").count(), 9, "{text}");
}

#[tokio::test]
async fn serve_refuses_the_sandbox_unless_it_is_asked_for_by_name() {
    let sandbox = [("ONRUSH_PAYMENTS__SANDBOX", "true"), ("ONRUSH_PAYMENTS__SANDBOX_SECRET", "7c1e5a8d4036b1c9")];
    let settings = [NO_SERVERS.as_slice(), &sandbox].concat();
    let output = onrush(&["serve"], &settings).await;
    assert!(!output.status.success());
    assert!(errors(&output).contains("--sandbox"), "{}", errors(&output));
    // By name it goes on, says so loudly, and fails at the servers that are not there.
    let output = onrush(&["serve", "--sandbox"], &settings).await;
    assert!(errors(&output).contains("SANDBOX"), "{}", errors(&output));
    assert!(errors(&output).contains("connecting to"), "{}", errors(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_schema_that_is_behind_and_migrate_mends_it() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    sqlx::query("DELETE FROM _sqlx_migrations ORDER BY version DESC LIMIT 1").execute(&h.app.db).await.unwrap();
    let env = h.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = onrush(&["serve", "--sandbox"], &env).await;
    assert!(!output.status.success());
    assert!(errors(&output).contains("onrush migrate"), "{}", errors(&output));
    let output = onrush(&["seed"], &env).await;
    assert!(errors(&output).contains("onrush migrate"), "{}", errors(&output));
}

#[test]
fn a_reader_that_has_enough_ends_a_command_quietly() {
    use std::io::BufRead;
    use std::process::{Command, Stdio};

    let mut command = Command::new(env!("CARGO_BIN_EXE_onrush"));
    let mut child = command.arg("openapi").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    // The document is longer than what a pipe holds: the command still writes when its reader goes.
    std::io::BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((line.as_str(), errors(&output).as_str()), ("{\n", ""));
    assert!(output.status.success());
}

#[tokio::test]
async fn an_empty_name_of_a_settings_file_is_none() {
    let settings = [NO_SERVERS.as_slice(), &[("ONRUSH_CONFIG", "")]].concat();
    let output = onrush(&["serve"], &settings).await;
    assert!(errors(&output).contains("connecting to"), "{}", errors(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_logs_its_roles_by_name_and_each_once() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let env = [("ONRUSH_LOG__FORMAT", "json"), ("ONRUSH_LOG__FILTER", "info")];
    let process = h.process("api,worker,api", &env).await;
    h.eventually(async || process.log().contains("onrush is serving")).await;
    assert!(process.log().contains(r#""roles":"api,worker""#), "{}", process.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_that_start_at_once_wait_for_each_other() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let all = h.count("SELECT COUNT(*) FROM _sqlx_migrations").await;
    let mut conn = h.app.db.acquire().await.unwrap();
    for change in ["DROP DATABASE", "CREATE DATABASE"] {
        sqlx::query(&format!("{change} {}", h.database)).execute(&mut *conn).await.unwrap();
    }
    let env = h.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let outputs = join_all((0..4).map(|_| onrush(&["migrate"], &env))).await;
    let mut applied = Vec::new();
    for output in outputs {
        assert!(output.status.success(), "{}", errors(&output));
        applied.push(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    applied.sort();
    // One of them did it all, and the others came to a schema that was current.
    let said = |count: i64| format!("applied {count} migration(s): the schema is current\n");
    assert_eq!(applied, [said(0), said(0), said(0), said(all)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn seed_loads_the_demo_data_once_and_changes_nothing_after_that() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let env = h.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut before = Vec::new();
    for _ in 0..2 {
        let output = onrush(&["seed"], &env).await;
        assert!(output.status.success(), "{}", errors(&output));
        let mut counts = Vec::new();
        for table in ["users", "courses", "chapters", "coupons", "user_coupons", "points_ledger", "seckill_activities"]
        {
            let sql = format!("SELECT COUNT(*) FROM {table}");
            let count: i64 = sqlx::query_scalar(&sql).fetch_one(&h.app.db).await.unwrap();
            assert!(count > 0, "no {table}");
            counts.push(count);
        }
        assert!(before.is_empty() || before == counts, "{before:?} {counts:?}");
        before = counts;
    }
    let login = serde_json::json!({"phone": "13800000001", "password": "onrush-demo"});
    h.post("/auth/login", (), login).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn seed_refuses_a_database_where_other_people_have_accounts() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    h.register().await;
    let env = h.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = onrush(&["seed"], &env).await;
    assert!(!output.status.success());
    let text = errors(&output);
    assert!(text.contains("other people have accounts") && text.contains("--beside-other-people"), "{text}");
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM courses").await, 0);
    let output = onrush(&["seed", "--beside-other-people"], &env).await;
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(h.count("SELECT COUNT(*) FROM users").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_warns_while_a_demo_password_gives_entry() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let warning = "A DEMO ACCOUNT IS OPEN";
    assert!(!h.process("api", &[]).await.log().contains(warning));
    demo::load(&h.app).await.unwrap();
    let log = h.process("api", &[]).await.log();
    assert_eq!(log.matches(warning).count(), 2, "{log}");
    for phone in ["13800000000", "13800000001"] {
        assert!(log.contains(phone), "{log}");
    }
    // Another password closes it; the other account stays open.
    let theirs =
        "UPDATE users SET password_hash = REPLACE(password_hash, 'p=1$', 'p=1$AAAA') WHERE phone = '13800000000'";
    sqlx::query(theirs).execute(&h.app.db).await.unwrap();
    assert_eq!(h.process("api", &[]).await.log().matches(warning).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_may_come_from_files() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let secrets = ["DATABASE_URL", "REDIS_URL", "ONRUSH_AUTH__JWT_SECRET", "ONRUSH_PAYMENTS__SANDBOX_SECRET"];
    let mut env = h.env();
    for (name, value) in env.iter_mut().filter(|(name, _)| secrets.contains(&name.as_str())) {
        let file = dir.path().join(&*name);
        std::fs::write(&file, format!("{value}\n")).unwrap();
        *name = format!("{name}_FILE");
        *value = file.to_str().unwrap().to_owned();
    }
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let output = onrush(&["check"], &env).await;
    assert!(output.status.success(), "{}", errors(&output));
    let twice = [env.as_slice(), &[("REDIS_URL", "redis://elsewhere"), ("ONRUSH_HTTP__LISTEN_FILE", "x")]].concat();
    let text = errors(&onrush(&["check"], &twice).await);
    assert!(text.contains("- REDIS_URL_FILE and REDIS_URL are both set: one of them must go"), "{text}");
    assert!(text.contains("- ONRUSH_HTTP__LISTEN_FILE is not a setting"), "{text}");
}

#[test]
fn the_secrets_of_the_script_are_for_their_owner_alone_and_never_written_over() {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    let dir = tempfile::tempdir().unwrap();
    let run = |target: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/script/secrets");
        Command::new(script).arg(target).current_dir(dir.path()).output().unwrap()
    };
    let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(run(".env").status.success());
    assert_eq!(mode(".env"), 0o600);
    let first = read(".env");
    assert!(first.lines().count() == 2 && first.starts_with("ONRUSH_AUTH__JWT_SECRET="), "two settings");
    let again = run(".env");
    assert!(!again.status.success() && errors(&again).contains("stays as it is"));
    assert_eq!(read(".env"), first);

    assert!(run(".secrets/").status.success());
    assert_eq!(mode(".secrets"), 0o700);
    let compose = include_str!("../../docker-compose.yml");
    let named = compose.lines().filter_map(|line| line.trim().strip_prefix("file: .secrets/"));
    let named: Vec<&str> = named.collect();
    assert_eq!(named.len(), std::fs::read_dir(dir.path().join(".secrets")).unwrap().count());
    for file in named {
        assert_eq!(mode(&format!(".secrets/{file}")), 0o444, "{file}");
    }
    let (url, password) = (read(".secrets/database_url"), read(".secrets/mysql_password"));
    assert!(url.contains(&format!("onrush:{}@mysql:3306", password.trim())));
    assert!(!run(".secrets/").status.success());
    assert_eq!(read(".secrets/mysql_password"), password);
}

/// Without a container engine here: that no service was left out, in words that the compose specification has.
#[test]
fn every_service_of_the_compose_file_is_hardened_and_has_limits() {
    let compose = include_str!("../../docker-compose.yml");
    let hardened = compose.split("x-hardened: &hardened\n").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    for line in ["read_only: true", "cap_drop: [ALL]", "security_opt: [\"no-new-privileges:true\"]"] {
        assert!(hardened.contains(line), "no {line} in {hardened}");
    }
    let services = compose.split("\nservices:\n").nth(1).and_then(|rest| rest.split("\nsecrets:\n").next()).unwrap();
    let mut count = 0;
    for service in services.split("\n\n  ").filter(|part| part.contains("<<: *hardened")) {
        count += 1;
        for key in ["mem_limit: ", "cpus: ", "pids_limit: ", "secrets: [", "networks: ["] {
            assert!(service.contains(&format!("\n    {key}")), "no {key} in {service}");
        }
        for key in ["cap_add", "privileged"] {
            assert!(!service.contains(key), "{key} in {service}");
        }
    }
    assert_eq!(count, 3);
    for variable in ["DATABASE_URL:", "REDIS_URL:", "JWT_SECRET:", "SANDBOX_SECRET:", "MYSQL_PASSWORD:"] {
        assert!(!compose.contains(variable), "{variable} has a secret in the environment");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_asks_the_service_of_this_machine() {
    let h = Harness::new().await;
    let address = h.base.trim_start_matches("http://").to_owned();
    let output = onrush(&["ready"], &[("ONRUSH_HTTP__LISTEN", &address)]).await;
    assert!(output.status.success(), "{}", errors(&output));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = onrush(&["ready"], &[("ONRUSH_HTTP__LISTEN", &nobody)]).await;
    assert!(!output.status.success());
}

#[tokio::test]
async fn openapi_needs_no_settings() {
    let output = onrush(&["openapi"], &[]).await;
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(document["paths"]["/healthz"].is_object());
}

#[tokio::test]
async fn every_command_has_a_help_worth_reading() {
    for command in ["dev", "serve", "migrate", "seed", "check", "openapi", "config", "ready"] {
        let output = onrush(&[command, "--help"], &[]).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.lines().next().is_some_and(|line| line.len() > 20),
            "{command}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dawdles_over_its_head_is_cut_off_and_others_are_served() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let h = Harness::new().await;
    let mut slow = tokio::net::TcpStream::connect(h.base.trim_start_matches("http://")).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx-never: ").await.unwrap();
    h.get("/healthz", ()).await.expect(200);
    let mut rest = Vec::new();
    let patience = onrush::http::server::HEAD_TIMEOUT + Duration::from_secs(10);
    let read = tokio::time::timeout(patience, slow.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is still open");
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_is_answered_after_sigterm_and_new_connections_are_not_taken() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    let mut process = h.process("api", &[]).await;
    let address = process.client.base.trim_start_matches("http://").to_owned();
    let body = r#"{"phone":"13900000009","password":"a long password"}"#;
    let (first, rest) = body.split_at(10);
    let mut under_way = TcpStream::connect(&address).await.unwrap();
    let head = "POST /api/v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{first}", body.len());
    under_way.write_all(request.as_bytes()).await.unwrap();
    // By then the process has read its head.
    let is_under_way = async || {
        let metrics = process.client.get("/metrics", ()).await.expect(200).text();
        metrics.lines().any(|line| line == "onrush_http_requests_in_flight 1")
    };
    h.eventually(is_under_way).await;
    process.signal("TERM");
    h.eventually(async || TcpStream::connect(&address).await.is_err()).await;
    under_way.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    under_way.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    process.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_poll_is_answered_when_the_process_stops() {
    let h = Harness::with(Options { system_clock: true, ..Options::default() }).await;
    // Nobody works here: the submission stays in the queue.
    let mut process = h.process("api", &[]).await;
    let (course, admin, alice) = (h.course(9_900).await, h.admin().await, h.register().await);
    let (now, hour) = (h.now(), Duration::from_secs(3600));
    let activity = serde_json::json!({
        "course_id": course.no(), "title": "秒杀", "price_fen": 100, "stock": 1,
        "starts_at": now.minus(hour), "ends_at": now.plus(hour),
    });
    let activity = h.post("/admin/seckill/activities", &admin, activity).await.expect(201).text_of("id");
    let submitted = h.post(&format!("/seckill/activities/{activity}/submissions"), &alice, serde_json::json!({})).await;
    let task = submitted.expect(202).text_of("id");
    let client = process.client.clone();
    let poll = tokio::spawn(async move { client.get(&format!("/tasks/{task}?wait=30"), &alice).await });
    // By the last of these answers the poll has long been read.
    for _ in 0..50 {
        process.client.get("/healthz", ()).await.expect(200);
    }
    process.terminate().await;
    assert_eq!(poll.await.unwrap().expect(200)["code"], 102);
}

#[tokio::test]
async fn crontab_tells_the_next_runs_or_the_bad_field() {
    let args = ["crontab", "30 7 * * mon", "--tz", "Asia/Shanghai", "--from", "2026-11-21T00:00:00Z", "--count", "2"];
    let output = onrush(&args, &[]).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(told, "2026-11-23T07:30:00+08:00\n2026-11-30T07:30:00+08:00\n", "{}", errors(&output));
    let output = onrush(&["crontab", "30 24 * * mon"], &[]).await;
    assert!(!output.status.success());
    assert!(errors(&output).contains("hour: `24` is not in 0..23"), "{}", errors(&output));
}
