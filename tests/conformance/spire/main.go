// spire plays cases against a server over its public wire, through the generated code of SPIRE's own API SDK, so that
// our protocol files are not their own judge.
//
//	conformance-spire play    reads {target, let, steps} from stdin; prints one JSON line {index, problems} a step
//	conformance-spire check   reads the same, sends nothing; prints the methods and request fields that the steps use
//	conformance-spire api     prints every method, and every field of every request, of the API
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

type target struct {
	TrustDomain string `json:"trust_domain"`
	Admin       string `json:"admin"`
	Address     string `json:"address"`
	AgentAdmin  string `json:"agent_admin"`
	Workload    string `json:"workload"`
}

type play struct {
	Target target         `json:"target"`
	Let    map[string]any `json:"let"`
	Steps  []step         `json:"steps"`
}

type report struct {
	Index    int      `json:"index"`
	Problems []string `json:"problems"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "conformance-spire:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: conformance-spire play|check|api")
	}
	out := json.NewEncoder(os.Stdout)
	switch os.Args[1] {
	case "api":
		return out.Encode(wholeAPI())
	case "play", "check":
	default:
		return fmt.Errorf("unknown verb %q", os.Args[1])
	}
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var p play
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		return fmt.Errorf("the steps: %w", err)
	}
	w := newWorld(p)
	if os.Args[1] == "check" {
		used, err := w.check(p.Steps)
		if err != nil {
			return err
		}
		return out.Encode(used)
	}
	defer w.close()
	for i, s := range p.Steps {
		problems := w.play(s)
		if problems == nil {
			problems = []string{}
		}
		if err := out.Encode(report{i, problems}); err != nil {
			return err
		}
	}
	return nil
}
