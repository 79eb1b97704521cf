package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/bench/result"
)

// fault is a smaller one, which happens while package client sends requests.
type fault struct {
	name string
	// begin has it happen; end, if it has one, is over what does not end by itself.
	begin func() (end func() error, err error)
}

// cost is what a fault cost.
type cost struct {
	name string
	tally
}

// smallerFaults has each happen in turn, that of the stores last: they do not come back.
func smallerFaults(ctx context.Context, c *cluster.Cluster, o options) (costs []cost, err error) {
	env, err := c.Env()
	if err != nil {
		return nil, err
	}
	for _, f := range faultsOf(c, env) {
		l, err := startLoad(ctx, c, strings.Split(env["MRGC_ENDPOINTS"], ","), o.perSecond)
		if err != nil {
			return nil, err
		}
		began, err := f.happen(ctx, o.around)
		end := time.Now()
		sent := l.stop()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		costs = append(costs, cost{f.name, between(sent, began, end)})
		fmt.Printf("%s: %d of %d requests failed\n", f.name, costs[len(costs)-1].failed, costs[len(costs)-1].requests)
	}
	return costs, nil
}

// happen waits before the fault, while it lasts, and afterwards.
func (f *fault) happen(ctx context.Context, around time.Duration) (began time.Time, err error) {
	if err := wait(ctx, around); err != nil {
		return began, err
	}
	began = time.Now()
	end, err := f.begin()
	if err != nil {
		return began, err
	}
	err = wait(ctx, around)
	if end != nil {
		err = errors.Join(err, end())
	}
	if err != nil {
		return began, err
	}
	return began, wait(ctx, around)
}

func faultsOf(c *cluster.Cluster, env map[string]string) []fault {
	killing := func(want int, chosen func(name string) bool) func() (func() error, error) {
		return func() (func() error, error) {
			killed, err := kill(c, chosen)
			if err == nil && killed != want {
				err = fmt.Errorf("killed %d processes, want %d", killed, want)
			}
			return nil, err
		}
	}
	return []fault{
		{"an instance killed (parent, enclave, guard), restarted", killing(3, func(name string) bool { return partOf(name, victim+"-0") })},
		{"a router of two killed, restarted", killing(1, func(name string) bool { return name == "router-"+victim })},
		{"both of a region's pickers stopped (SIGSTOP) for a while", func() (func() error, error) {
			children, err := c.Children()
			if err != nil {
				return nil, err
			}
			routers := []int{children["router-"+victim], children["router-"+victim+"-1"]}
			all := func(sig syscall.Signal) (err error) {
				for _, pid := range routers {
					err = errors.Join(err, syscall.Kill(pid, sig))
				}
				return err
			}
			return func() error { return all(syscall.SIGCONT) }, all(syscall.SIGSTOP)
		}},
		{"the controller that leads killed, restarted, with all others", killing(3, func(name string) bool { return strings.HasPrefix(name, "controller-") })},
		{"the files of both stores removed", func() (func() error, error) {
			for _, store := range []string{"MRGC_STORE", "MRGC_STATE"} {
				path := strings.TrimPrefix(env[store], "sqlite:")
				for _, suffix := range []string{"", "-wal", "-shm"} {
					if err := os.Remove(path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
						return nil, err
					}
				}
			}
			return nil, nil
		}},
	}
}

// table has the region's death beside the smaller faults.
func (s *story) table(faults []cost) result.Table {
	t := result.Table{
		Title:   "faults, as a tenant of package client notices them",
		Columns: []string{"fault", "requests", "failed, no byte yet", "cut", "last failure after", "slowest begin of an answer"},
	}
	for _, c := range append([]cost{{fmt.Sprintf("a region killed, for %.0f s", seconds(s.down)), s.died}, {"the region restored", s.back}}, faults...) {
		recovered := "none failed"
		if c.failed+c.cut > 0 {
			recovered = fmt.Sprintf("%.2f s", seconds(c.lastFailure))
		}
		t.Rows = append(t.Rows, []string{
			c.name, fmt.Sprint(c.requests), fmt.Sprint(c.failed), fmt.Sprint(c.cut), recovered, fmt.Sprintf("%.2f s", seconds(c.slowest)),
		})
	}
	return t
}
