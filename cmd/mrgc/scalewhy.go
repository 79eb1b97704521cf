package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/controller/autoscaler"
)

// saying is what one of a region's rules said at the last decision.
type saying struct{ rule, says string }

// sayings reads what a region's rules said from what its row remembers. There are none
// before the first decision.
func sayings(memory json.RawMessage) ([]saying, error) {
	var s *autoscaler.State
	if len(memory) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(memory, &s); err != nil || s == nil {
		return nil, err
	}
	said := s.Said
	all := []saying{{"load", "not known: the number stays"}}
	if said.Fresh {
		all[0].says = fmt.Sprintf("%.1f requests/s; with all that is said below, %s", said.Demand, counted(said.Needed, "instance"))
	}
	if said.Learn {
		all = append(all, saying{"learn", learned(s.Capacity)})
	}
	if said.Reserve {
		all = append(all, saying{"reserve", "-"})
		if said.Fresh {
			all[len(all)-1].says = fmt.Sprintf("room for %.1f requests/s should another region be lost", said.Reserved)
		}
	}
	if said.Forecast {
		all = append(all, saying{"forecast", foreseen(said, &s.Forecast)})
	}
	if len(all) == 1 {
		all = append(all, saying{"plain rules", "nothing else is switched on"})
	}
	return all, nil
}

// learned is what instances are known to serve.
func learned(capacity map[string]autoscaler.Capacity) string {
	if len(capacity) == 0 {
		return "nothing yet: a request is a request"
	}
	each := make([]string, 0, len(capacity))
	for _, model := range slices.Sorted(maps.Keys(capacity)) {
		each = append(each, fmt.Sprintf("%s %.0f", model, capacity[model].Tokens))
	}
	return "tokens/s of an instance: " + strings.Join(each, ", ")
}

func foreseen(said autoscaler.Said, by *autoscaler.Forecast) string {
	known := 0
	for _, days := range by.Days {
		if days > 0 {
			known++
		}
	}
	history := "no day before is known"
	if known > 0 {
		history = fmt.Sprintf("%.0f %% of the day are known of days before", 100*float64(known)/float64(len(by.Days)))
	}
	if !said.Fresh {
		return history
	}
	return fmt.Sprintf("up to %.1f requests/s while a launch takes, a margin of %.0f %% included; %s", said.Ahead, 100*by.Margin, history)
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printSayings shows what the rules of regions said.
func printSayings(table io.Writer, regions []regionScale) error {
	fmt.Fprintln(table, "\nREGION\tRULE\tSAYS")
	for _, r := range regions {
		all, err := sayings(r.Memory)
		if err != nil {
			return fmt.Errorf("%s: memory: %w", r.Region, err)
		}
		for _, s := range all {
			fmt.Fprintf(table, "%s\t%s\t%s\n", r.Region, s.rule, s.says)
		}
	}
	return nil
}
