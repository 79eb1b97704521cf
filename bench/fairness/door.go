package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/mrgc/mrgc/bench/rig"
	"github.com/mrgc/mrgc/extproc"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/size"
	"github.com/mrgc/mrgc/internal/tenant"
)

// door is a router's picker.
type door struct {
	picker    *extproc.Picker
	log       *rig.Log
	addresses []string
	keys      []string
}

func newDoor(w *world) (*door, error) {
	d := &door{}
	var instances []*fleet.Instance
	for i := range engines {
		in := &fleet.Instance{
			ID: rig.InstanceID(i), Region: rig.Region, Address: fmt.Sprintf("10.0.0.%d:8080", i),
			Models: []string{rig.Model}, KeyIDs: []string{rig.KeyID(i)},
			Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: slots}, HeartbeatAt: w.Time(),
		}
		instances = append(instances, in)
		d.addresses = append(d.addresses, in.Address)
		d.keys = append(d.keys, in.KeyIDs...)
	}
	snapshot := fleet.NewSnapshot(w.Time(), instances)
	weights := map[string]int{}
	for _, l := range w.loads {
		weights[l.tenant] = l.weight
	}
	var err error
	d.picker, err = extproc.New(extproc.Config{
		Region: rig.Region, View: func() *fleet.Snapshot { return snapshot }, Settings: extproc.Settings{StaleAfter: time.Hour}, Now: w.Time,
		Admit: func(name string, _ []byte, _ time.Time) (*tenant.Tenant, error) {
			return &tenant.Tenant{Name: name, Limits: tenant.Limits{Weight: weights[name]}}, nil
		},
		Report: func(in *fleet.Instance) routing.Report {
			p := &w.parents[slices.Index(d.addresses, in.Address)]
			report := p.Report
			report.Since = w.Now() - p.At
			return report
		},
	})
	if err == nil {
		d.log = rig.OpenLog(d.picker)
	}
	return d, err
}

func (d *door) close() { d.log.Close() }

// ask gives the engine that a request is to go to, or when to ask again.
func (d *door) ask(id, tenant string) (engine int, retryAfter time.Duration, err error) {
	address, retryAfter, err := rig.AskPicker(d.picker, rig.Sealed{
		ID: id, Tenant: tenant, Size: size.Round(promptSize, outputSize).String(), Recipients: d.keys,
	})
	if err != nil || retryAfter > 0 {
		return 0, retryAfter, err
	}
	if engine = slices.Index(d.addresses, address); engine < 0 {
		return 0, 0, fmt.Errorf("picked %q, which is no engine", address)
	}
	return engine, 0, nil
}

// ended tells the picker that a request has.
func (d *door) ended(id string) error { return d.log.End(id) }
