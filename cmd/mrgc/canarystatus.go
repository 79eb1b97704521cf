package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/mrgc/mrgc/controller/canary"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/operator"
)

// weighted is a version as it is shown.
type weighted struct {
	Model   string `json:"model"`
	Version string `json:"version"`
	Weight  int    `json:"weight_per_mille"`
	// Present is the version that those on trial are compared with.
	Present    bool                  `json:"present,omitempty"`
	Trial      *operator.TrialStatus `json:"trial,omitempty"`
	RolledBack *rollback             `json:"rolled_back,omitempty"` // the last time, if it has no weight since
}

func weightsOf(cluster *config.Config) []weighted {
	all := []weighted{}
	for _, m := range cluster.Models {
		for _, v := range m.Versions {
			all = append(all, weighted{Model: m.Name, Version: v.Name, Weight: v.Weight})
		}
	}
	return all
}

// find adds what is said of a version.
func (v *weighted) find(trials []operator.TrialStatus, done []rollback) {
	for i := range trials {
		if t := &trials[i]; t.Model == v.Model {
			v.Present = v.Present || t.Present == v.Version
			if t.Version == v.Version && v.Weight > 0 { // else the routers have not seen it yet
				v.Trial = t
			}
		}
	}
	for i := range done {
		if r := &done[i]; r.Model == v.Model && r.Version == v.Version && v.Weight == 0 {
			v.RolledBack = r
		}
	}
}

func (o *canaryOptions) show(w io.Writer, all []weighted) error {
	return o.output.print(w, all, func(w io.Writer) error { return printWeights(w, all) })
}

// printWeights shows every version of every model that has any. There are columns for a
// trial only if there is one.
func printWeights(w io.Writer, all []weighted) error {
	onTrial, said := false, false
	for _, v := range all {
		onTrial = onTrial || v.Trial != nil
		said = said || v.Trial != nil || v.RolledBack != nil
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(table, "MODEL\tVERSION\tSHARE")
	if onTrial {
		fmt.Fprint(table, "\tREQUESTS\tFAILED\tFIRST TOKEN\tPER TOKEN\tEVIDENCE\tCOMPARED")
	}
	if said {
		fmt.Fprint(table, "\tVERDICT")
	}
	fmt.Fprintln(table)
	present := map[string]*operator.TrialStatus{}
	for _, v := range all {
		if v.Trial != nil {
			present[v.Model] = v.Trial
		}
	}
	for _, v := range all {
		fmt.Fprintf(table, "%s\t%s\t%s", v.Model, v.Version, shareText(v.Weight))
		if onTrial {
			fmt.Fprint(table, v.figures(present[v.Model]))
		}
		if said {
			fmt.Fprint(table, "\t"+v.verdict())
		}
		fmt.Fprintln(table)
	}
	return table.Flush()
}

// figures are those of a version, beside which another is on trial.
func (v *weighted) figures(other *operator.TrialStatus) string {
	switch {
	case v.Trial != nil:
		t := v.Trial
		times := func(s canary.Signal) string {
			if ratio, known := t.Ratios[string(s)]; known {
				return fmt.Sprintf("x %.2f", ratio)
			}
			return "-"
		}
		most := t.Evidence[string(canary.SignalErrors)]
		for _, e := range t.Evidence {
			most = max(most, e)
		}
		return fmt.Sprintf("\t%d\t%s\t%s\t%s\t%.2f of 1\t%d", t.Requests, failedText(t.Failed, t.Requests),
			times(canary.SignalTTFT), times(canary.SignalPerToken), math.Round(100*most)/100+0, t.Compared)
	case v.Present && other != nil:
		return fmt.Sprintf("\t%d\t%s\tx 1\tx 1\t-\t-", other.PresentRequests, failedText(other.PresentFailed, other.PresentRequests))
	default:
		return "\t-\t-\t-\t-\t-\t-"
	}
}

func failedText(failed, of int) string {
	if of == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(failed)/float64(of))
}

// verdict is what is thought of a version.
func (v *weighted) verdict() string {
	switch {
	case v.RolledBack != nil:
		return fmt.Sprintf("rolled back %s by a router of %s: %s", v.RolledBack.At.Format(time.RFC3339), v.RolledBack.Region, v.RolledBack.Reason)
	case v.Trial != nil && v.Trial.Verdict != "no worse":
		text := "WORSE by " + string(v.Trial.Signal)
		if !v.Trial.Auto {
			text += ": mrgc canary abort " + v.Model + " " + v.Version
		}
		return text
	case v.Trial != nil && v.Trial.Compared == 0:
		return "nothing is compared yet"
	case v.Trial != nil:
		return "no worse"
	case v.Present:
		return "present"
	default:
		return "-"
	}
}

func shareText(perMille int) string {
	if perMille == 0 {
		return "0 %, withdrawn"
	}
	return strconv.FormatFloat(float64(perMille)/10, 'f', -1, 64) + " %"
}
