package operator

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// ModelStatus is a version of a model in a region.
type ModelStatus struct {
	Model     string `json:"model"`
	Version   string `json:"version,omitempty"` // empty: its instances do not say
	Region    string `json:"region"`
	Ready     int    `json:"ready"`     // instances that take requests
	Draining  int    `json:"draining"`  // that are not to
	Instances int    `json:"instances"` // of all of them
}

// Models are those that instances serve, in order of model, version and region.
func (s Status) Models() []ModelStatus {
	all := []ModelStatus{}
	for _, in := range s.Instances {
		for _, model := range in.Models {
			is := ModelStatus{Model: model, Version: in.Versions[model], Region: in.Region}
			i, found := slices.BinarySearchFunc(all, is, ModelStatus.compare)
			if !found {
				all = slices.Insert(all, i, is)
			}
			all[i].Instances++
			if in.Ready {
				all[i].Ready++
			}
			if in.Draining {
				all[i].Draining++
			}
		}
	}
	return all
}

func (m ModelStatus) compare(o ModelStatus) int {
	return cmp.Or(cmp.Compare(m.Model, o.Model), cmp.Compare(m.Version, o.Version), cmp.Compare(m.Region, o.Region))
}

// PrintModels writes models for people.
func PrintModels(w io.Writer, models []ModelStatus) error {
	t := newTable(w)
	t.row("MODEL", "VERSION", "REGION", "READY", "DRAINING")
	for _, m := range models {
		t.row(m.Model, cmp.Or(m.Version, "-"), m.Region, fmt.Sprintf("%d of %d", m.Ready, m.Instances), fmt.Sprint(m.Draining))
	}
	return t.Flush()
}
