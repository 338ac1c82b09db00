# The moves of shards, from the API server's audit log (the input), the Leases as they were before ($before: a List),
# and the lines of the replicas' logs with the start of work ($working). $since: milliseconds since 1970.
def micros:
  capture("^(?<whole>[^.Z]+)(\\.(?<part>[0-9]+))?Z$")
  | ((.whole + "Z") | fromdate) * 1000000 + (((.part // "0") + "000000")[0:6] | tonumber);
def said: .fields // .;

([$working[] | {key: "\(said.shard | tonumber)/\(said.epoch)", value: (.timestamp | micros)}] | from_entries) as $began
| ($before[0].items | map({key: .metadata.name, value: {
    holder: (.spec.holderIdentity // ""), epoch: (.spec.leaseTransitions // 0), since: 0}}) | from_entries) as $known
| [inputs
    | select(.objectRef.resource == "leases" and .responseStatus.code < 300 and .responseObject.kind == "Lease"
        and .responseObject.metadata.labels["database.io/role"] == "shard")
    | {given: (.requestReceivedTimestamp | micros), done: (.stageTimestamp | micros), lease: .objectRef.name,
       holder: (.responseObject.spec.holderIdentity // ""), epoch: (.responseObject.spec.leaseTransitions // 0),
       by: (.user.extra["authentication.kubernetes.io/pod-name"][0] // .user.username)}
    | select(.done >= $since * 1000)]
| sort_by(.done)
| reduce .[] as $now ({known: $known, moves: []};
    (.known[$now.lease] // {holder: "", epoch: -1, since: $now.done}) as $former
    | if $now.epoch <= $former.epoch then .
      else
        .known[$now.lease] = {holder: $now.holder, epoch: $now.epoch, since: $now.done}
        | if $now.holder == "" then .
          else ($now.lease | capture("(?<number>[0-9]+)$").number | tonumber) as $number
            | $began["\($number)/\($now.epoch)"] as $work
            | .moves += [{lease: $now.lease, from: $former.holder, to: $now.holder,
                planned: ($now.by == $former.holder and $now.by != $now.holder),
                unowned_ms: (if $work then ([$work - (if $former.holder == "" then $former.since else $now.given end), 0] | max) / 1000 else null end),
                worked_ms: (if $work then $work / 1000 - $since else null end)}]
          end
      end)
| .moves
