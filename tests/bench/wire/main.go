// wire drives a SPIFFE server and agent through nothing but their public wires, with SPIRE's own generated clients, and
// measures. The same program can be pointed at any SPIRE-compatible pair. Every verb prints one JSON object.
//
//	wire attest  -addr A -td TD -token T -dir D              join-token attestation (without -token: makes one at -admin); keeps the agent's SVID and key in D
//	wire entries -admin S -td TD -parent P -n N              creates N entries; their ids go to -ids FILE
//	wire batch   -addr A -td TD -dir D -ids FILE -size N -calls N -callers N -pid PID   BatchNewX509SVID
//	wire jwt     -addr A -td TD -dir D -ids FILE -calls N -callers N -pid PID           NewJWTSVID
//	wire attach  -sock S -n N                                dial, attest, first X.509-SVID
//	wire latency -admin S -sock S -td TD -parent P -n N      entry created -> its SVID on an open stream
//	wire fanout  -admin S -sock S -td TD -parent P -streams N   entry created -> on the last of N open streams
//	wire fleet   -addr A -admin S -td TD -dir D -n N -seconds N -pid PID   N agents attached (Burgee's push service), idle
//	wire hold    -addr A -admin S -td TD -dir D -n N -size N   N agents with SVIDs each, which follow until its input ends; prints twice
//	wire taint   -addr A -admin S -td TD -dir D -n N -size N   N agents with SVIDs each: authority tainted -> the last one replaced
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"
)

type options struct {
	addr, admin, sock, td, token, dir, ids, parent, selector, prefix string
	n, size, calls, callers, streams, seconds, pid                   int
}

type report map[string]any

func main() {
	var o options
	verbs := map[string]func(options) (report, error){
		"attest": attest, "entries": entries, "batch": batch, "jwt": jwt,
		"attach": attach, "latency": latency, "fanout": fanout, "fleet": fleet, "hold": hold, "taint": taint,
	}
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: wire attest|entries|batch|jwt|attach|latency|fanout|fleet|hold|taint [flags]")
		os.Exit(2)
	}
	f := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	f.StringVar(&o.addr, "addr", "127.0.0.1:8081", "server address")
	f.StringVar(&o.admin, "admin", "", "server admin socket")
	f.StringVar(&o.sock, "sock", "", "Workload API socket")
	f.StringVar(&o.td, "td", "example.org", "trust domain")
	f.StringVar(&o.token, "token", "", "join token")
	f.StringVar(&o.dir, "dir", ".", "where the agent's SVID and key are kept")
	f.StringVar(&o.ids, "ids", "", "file of entry ids, one a line")
	f.StringVar(&o.parent, "parent", "", "parent path")
	f.StringVar(&o.selector, "selector", "unix:uid:"+strconv.Itoa(os.Getuid()), "selector of created entries")
	f.StringVar(&o.prefix, "prefix", "bench", "path prefix of created entries")
	f.IntVar(&o.n, "n", 100, "how many")
	f.IntVar(&o.size, "size", 500, "CSRs a call")
	f.IntVar(&o.calls, "calls", 10, "calls")
	f.IntVar(&o.callers, "callers", 1, "concurrent callers")
	f.IntVar(&o.streams, "streams", 1000, "open streams")
	f.IntVar(&o.seconds, "seconds", 10, "how long to watch")
	f.IntVar(&o.pid, "pid", 0, "process whose CPU time is counted")
	_ = f.Parse(os.Args[2:])
	out, err := verbs[os.Args[1]](o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "wire:", err)
		os.Exit(1)
	}
	_ = json.NewEncoder(os.Stdout).Encode(out)
}

// cpu gives the user and system seconds a process has used (proc(5), fields 14 and 15; the clock ticks 100 times a second).
func cpu(pid int) float64 {
	if pid == 0 {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}

// percentiles of durations, in milliseconds.
func percentiles(d []time.Duration) report {
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	at := func(p float64) float64 {
		return float64(d[min(len(d)-1, int(p*float64(len(d))))].Microseconds()) / 1000
	}
	return report{"n": len(d), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1)}
}
