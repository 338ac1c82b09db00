//! What the Pods do not trust: other namespaces, impostors of the primary, edited ConfigMaps, and
//! functions that users of the database created.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::Ipv4Addr;

use crate::network::{Demand, Resolver, Rogue};
use crate::pod::{Pod, World};

/// Replaces a program of PostgreSQL whose libpq knows `require_auth`: it records its arguments.
const NEW_LIBPQ: &str = r#"name=${0##*/}
printf '%s [%s] %s\n' "$name" "${PGOPTIONS:-}" "$*" >>"$TMPDIR/calls"
case "$*" in
*host=/nowhere*) echo "no such file" >&2; exit 2 ;;
esac
for word; do
  shift
  set -- "$@" "$(printf '%s' "$word" | sed 's/ require_auth=scram-sha-256//')"
done
exec "$REAL/$name" "$@""#;

#[test]
fn primary_is_resolved_only_in_its_own_namespace() {
    let resolver = Resolver::start();
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    // Service `orders-db-0` in the namespace `orders-db`.
    let elsewhere = Ipv4Addr::new(127, 6, 6, 6);
    resolver.add("orders-db-0.orders-db.svc.example.org.", elsewhere);
    let rogue = Rogue::listen(elsewhere, world.primary_port(), Demand::Password);

    let mut replica = Pod::new(&world, 1);
    replica.resolve_by(&resolver.resolv_conf("example.org"));
    let init = replica.begin();
    let name = "orders-db-0.orders-db.shop.svc.example.org.";
    replica.until("it has asked for the primary again", |_| {
        let asked = resolver.asked();
        let times = asked.iter().filter(|asked| *asked == name).count();
        assert_eq!(rogue.received(), [""; 0], "asked for: {asked:?}");
        // Each time for both kinds of address.
        times >= 4
    });
    resolver.add(name, Ipv4Addr::LOCALHOST);
    init.end().unwrap();
    let replica = replica.start();
    replica.until_ready();
    assert_eq!(rogue.received(), [""; 0]);
    let asked = resolver.asked();
    assert!(asked.iter().all(|asked| asked == name), "{asked:?}");
}

#[test]
fn pod_reports_a_resolver_without_its_namespace() {
    let world = World::new();
    let mut replica = Pod::new(&world, 1);
    replica.resolve_by("nameserver 127.0.0.1\nsearch example.com\n");
    let output = replica.prepare().unwrap_err();
    assert!(output.contains("does not have shop.svc"), "{output}");
}

#[test]
fn impostor_primary_gets_no_password_and_is_not_trusted() {
    for demand in [Demand::Password, Demand::Trust] {
        let world = World::new();
        let rogue = Rogue::listen(Ipv4Addr::LOCALHOST, world.primary_port(), demand);
        let replica = Pod::new(&world, 1);
        let output = replica.prepare().unwrap_err();
        assert!(!replica.has_data());
        let received = rogue.received();
        // The first one only checks whether the server answers.
        assert_eq!(received.first().map(String::as_str), Some(""), "{output}");
        if output.contains("cannot insist on SCRAM") {
            // The behavior of older versions of libpq, as in docs/explanation/limits.md.
            continue;
        }
        assert!(output.contains("scram-sha-256"), "{output}");
        assert!(received.iter().all(String::is_empty), "{received:?}");
    }
}

#[test]
fn connections_to_the_primary_require_scram_and_a_catalog_search_path() {
    let world = World::new();
    let primary = Pod::new(&world, 0);
    primary.stub("psql", NEW_LIBPQ);
    primary.prepare().unwrap();
    let mut primary = primary.start();
    primary.until_ready();
    let replica = Pod::new(&world, 1);
    for program in ["psql", "pg_basebackup"] {
        replica.stub(program, NEW_LIBPQ);
    }
    replica.prepare().unwrap();
    // Once more, now that there is data to compare.
    replica.prepare().unwrap();
    let settings = replica.read_volume("data/postgresql.auto.conf");
    let connection = settings
        .lines()
        .find(|line| line.starts_with("primary_conninfo"));
    assert!(
        connection.unwrap().contains("require_auth=scram-sha-256"),
        "{settings}"
    );
    // The server here may have an older libpq than that.
    let connection = settings.replace(" require_auth=scram-sha-256", "");
    replica.write_volume("data/postgresql.auto.conf", &connection);
    let replica = replica.start();
    replica.until_ready();
    primary.stop();

    let mut remote = 0;
    for pod in [&primary, &replica] {
        let calls = std::fs::read_to_string(pod.path("/tmp/calls")).unwrap();
        for call in calls.lines() {
            // Nor does a time-out of the DatabaseCluster end what the scripts do.
            let options = "[-c search_path=pg_catalog -c statement_timeout=0 -c lock_timeout=0]";
            assert!(call.contains(options), "{call}");
            if call.contains("user=replicator") {
                remote += 1;
                assert!(call.contains("require_auth=scram-sha-256"), "{call}");
            }
        }
    }
    // The copy, and both questions of the comparison.
    assert_eq!(remote, 3);
}

#[test]
fn standby_runs_no_command_from_the_copied_data() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let replica = Pod::new(&world, 1);
    let mark = replica.path("/tmp/mark");
    let mut file = primary.read_volume("data/postgresql.conf");
    for setting in [
        "restore_command",
        "archive_cleanup_command",
        "recovery_end_command",
    ] {
        let set = format!("{setting} = 'touch {}'", mark.display());
        primary
            .psql_local(&format!("ALTER SYSTEM SET {set}"))
            .unwrap();
        file = format!("{file}\n{set}\n");
    }
    primary.write_volume("data/postgresql.conf", &file);
    let mut replica = replica.prepared().start();
    replica.until_ready();
    let commands = "SELECT string_agg(name, ' ') FROM pg_settings WHERE name ~ '^(restore|archive_cleanup|recovery_end)_command' AND setting <> ''";
    assert_eq!(replica.psql_local(commands).as_deref(), Ok(""));
    // Also what is set on the replica, when it starts again.
    replica
        .psql_local("ALTER SYSTEM SET primary_conninfo = 'host=elsewhere'")
        .unwrap();
    replica.stop();
    let replica = replica.prepared().start();
    replica.until_ready();
    assert!(!mark.exists(), "a command was run");
}

#[test]
fn answers_of_the_primary_are_never_executed() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let mut replica = Pod::new(&world, 1).prepared().start();
    replica.until_ready();
    replica.stop();
    let mark = replica.path("/scripts/mark");
    let id = primary.psql_local("SELECT system_identifier FROM pg_control_system()");
    // This shell finds commands in numbers.
    replica.stub("sh", "exec bash \"$@\"");
    for answer in [
        "ID 1 0/0+SHLVL[$(touch${IFS}mark)]",
        "ID 1 0/0\nID 1 0/0+SHLVL[$(touch${IFS}mark)]",
        "SHLVL[$(touch${IFS}mark)] 1 0/0",
    ] {
        let answer = answer.replace("ID", id.as_deref().unwrap());
        let script = format!("cat <<'END'\n{answer}\nEND");
        replica.stub("psql", &script);
        let output = replica.prepare();
        assert!(!mark.exists(), "{answer} was run");
        let output = output.unwrap();
        assert!(output.contains("does not answer as it should"), "{output}");
    }
}

#[test]
fn scripts_that_differ_from_the_pods_own_are_not_run() {
    let world = World::new();
    for script in [
        "alive.sh",
        "initdb.sh",
        "prepare.sh",
        "primary.sh",
        "ready.sh",
        "settings.sh",
    ] {
        let mut primary = Pod::new(&world, 0);
        let mark = primary.path("/tmp/mark");
        let edited = format!("#!/bin/sh\ntouch {}\n", mark.display());
        for edit in [Some(edited.as_str()), None] {
            primary.edit_config(script, edit);
            let output = primary.prepare().unwrap_err();
            assert!(
                output.contains("ConfigMap orders-db are not those of this Pod"),
                "{output}"
            );
            assert!(!mark.exists(), "{script} was run");
            primary.mount(&world);
        }
        // Later or earlier edits are not executed.
        primary.prepare().unwrap();
        primary.edit_config(script, Some(&edited));
        if script == "initdb.sh" {
            primary = primary.start();
            primary.until_ready();
        }
        let _any = primary.probe("livenessProbe");
        let _any = primary.probe("readinessProbe");
        assert!(!mark.exists(), "{script} was run");
        drop(primary);
        world.remove_pods();
    }
}

#[test]
fn user_functions_and_operators_do_not_run_as_superuser() {
    let mut world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    // As it is in every database up to PostgreSQL 14.
    primary
        .psql_local("GRANT CREATE ON SCHEMA public TO PUBLIC")
        .unwrap();
    let uri = world.uri(&primary);
    let in_postgres = uri.strip_suffix("/app").unwrap().to_owned() + "/postgres";
    let seize = "CREATE FUNCTION seize() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END $$";
    primary.psql(&in_postgres, seize).unwrap();
    // Planned as a constant: it runs even where its result is not needed.
    for (arguments, result) in [("text, text", "format"), ("text, text, text", "format")] {
        let function = format!(
            "CREATE FUNCTION {result}({arguments}) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
             $$ BEGIN PERFORM public.seize(); RETURN 'SELECT 1'; END $$"
        );
        primary.psql(&in_postgres, &function).unwrap();
    }
    primary.stop();
    world.set_secret("password", "another");
    primary.mount(&world);
    primary.prepare().unwrap();
    let primary = primary.start();
    primary.until_ready();
    let superusers = "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper";
    assert_eq!(primary.psql_local(superusers).as_deref(), Ok("postgres"));
}
