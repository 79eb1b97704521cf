package operator

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// table prints columns for people. What comes from elsewhere cannot steer the
// terminal.
type table struct{ *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

func (t table) row(cells ...string) {
	for i := range cells {
		cells[i] = clean(cells[i])
	}
	fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

// clean keeps a text on one line, without control characters.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// age writes a time in seconds as people do.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d <= 0:
		return "0s"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}

func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }

// cell is a release in a table: its version, and what an operator has to see of it, that
// it is not trusted or that others are at a newer one.
func (r *Release) cell(newest uint64) string {
	switch {
	case r == nil:
		return "-"
	case !r.Trusted:
		return "REFUSED"
	case r.Version < newest:
		return fmt.Sprintf("%d (others: %d)", r.Version, newest)
	default:
		return fmt.Sprint(r.Version)
	}
}

// Print writes a status for people.
func (s Status) Print(w io.Writer) error {
	t := newTable(w)
	t.row("REGION", "ROUTER", "STATE", "PEERS", "CONFIG")
	for _, r := range s.Routers {
		state := "ready"
		if !r.Ready {
			state = "NOT READY: " + r.Reason
		}
		heard, others := 0, 0
		for _, p := range r.Peers {
			if p.State != "this router" {
				others++
			}
			if p.State == "connected" && !p.Expired {
				heard++
			}
		}
		t.row(cmp.Or(r.Region, "?"), r.Admin, state, fmt.Sprintf("%d of %d heard", heard, others), r.Config.String())
	}
	t.row()
	newest := uint64(0)
	for _, in := range s.Instances {
		if in.Release != nil {
			newest = max(newest, in.Release.Version)
		}
	}
	t.row("REGION", "INSTANCE", "MODE", "RELEASE", "STATE", "SCORE", "= QUEUE/50", "+ LATENCY/30", "+ HEALTH/20", "IN FLIGHT", "REPORT", "HEARTBEAT", "ERRORS", "WEIGHT")
	for _, in := range s.Instances {
		cells := []string{in.Region, in.ID, cmp.Or(in.Mode, "-"), in.Release.cell(newest), in.state(), "-", "-", "-", "-", "-", "-", age(in.HeartbeatAgeSec), "-", fmt.Sprint(in.Weight)}
		if sc := in.Score; sc != nil {
			points := func(term float64) string { return fmt.Sprintf("%.0f", term) }
			cells[6], cells[7], cells[8] = points(sc.Terms.Queue), points(sc.Terms.Latency), points(sc.Terms.Health)
			cells[5], cells[9], cells[10], cells[12] = fmt.Sprint(sc.Score), fmt.Sprint(sc.InFlight), report(sc.Report, sc.ReportAgeSec), percent(sc.ErrorRate)
		}
		t.row(cells...)
	}
	t.row()
	t.row("REGION", "ENVOY", "STATE", "CONNECTED", "ACCEPTED", "REASON")
	for _, e := range s.Envoys {
		state := e.State
		if e.RejectedSec > 0 {
			state += " " + age(e.RejectedSec) + " ago"
		}
		accepted := "-"
		if e.AckedAgeSec > 0 {
			accepted = age(e.AckedAgeSec) + " ago"
		}
		t.row(e.Region, e.Node, state, age(e.ConnectedSec), accepted, e.Reason)
	}
	return t.Flush()
}

// String says which configuration it is, since when, and what is wrong with a newer.
func (c ConfigStatus) String() string {
	if c.Version == "" {
		return "-"
	}
	text := fmt.Sprintf("%s for %s", c.Version, age(c.AgeSec))
	if c.Refused != "" {
		text += ", REFUSES THE FILE: " + c.Refused
	}
	return text
}

// state is an instance's in a word, and why it is not ready.
func (in *InstanceStatus) state() string {
	var why []string
	if in.Draining {
		why = append(why, "draining")
	}
	if !in.EnclaveHealthy {
		why = append(why, "enclave unhealthy")
	}
	if !in.EngineHealthy {
		why = append(why, "engine unhealthy")
	}
	if in.Reason != "" {
		why = append(why, in.Reason)
	}
	switch {
	case in.Ready && len(why) > 0:
		return "ready, but " + strings.Join(why, ", ")
	case in.Ready:
		return "ready"
	case len(why) == 0:
		return "NOT READY: heartbeat is stale"
	default:
		return "NOT READY: " + strings.Join(why, ", ")
	}
}

func report(of string, seconds float64) string {
	if of == "missing" {
		return of
	}
	return of + " " + age(seconds)
}
