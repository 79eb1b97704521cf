// Package schema is the one description of the cluster's DynamoDB tables: what
// `mrgc state init` creates and checks, what `mrgc state schema -o json` prints
// for Terraform, and what the stores are written against.
//
// A table's comment says who writes it. Why a table is consistent in the way it
// is, how often it is written and how long its rows are kept: docs/state.md.
//
// What an operator chooses is not in it: encryption, backups, deletion
// protection. Tables are billed by request, since a fleet of any size in sight
// needs few, and such a table has no capacity to set too low.
//
// The package is pure: it compares descriptions, and asks nobody for them.
package schema

import (
	"fmt"
	"slices"
	"strings"
)

// Consistency is what a table promises between regions. DynamoDB sets it when a
// table gets its first replicas, and never changes it.
type Consistency string

// Consistencies, by DynamoDB's names.
const (
	// Strong is multi-Region strong consistency: conditional writes and
	// consistent reads see every region's writes. No TTL, no transactions.
	Strong Consistency = "STRONG"
	// Eventual is asynchronous replication, and the last writer of an item wins.
	Eventual Consistency = "EVENTUAL"
	// Regional is one table in each region, of which none knows of the others.
	Regional Consistency = "REGIONAL"
)

// Table is a table and its indexes.
type Table struct {
	Name         string      `json:"name"`
	Purpose      string      `json:"purpose"`
	PartitionKey Attribute   `json:"partition_key"`
	SortKey      *Attribute  `json:"sort_key,omitempty"`
	Indexes      []Index     `json:"global_secondary_indexes"`
	TTLAttribute string      `json:"ttl_attribute,omitempty"` // N, seconds since 1970; empty: rows stay
	Stream       bool        `json:"stream"`                  // of new and old images, which asynchronous replication needs
	Consistency  Consistency `json:"consistency"`
	Regions      []string    `json:"regions"` // AWS's names of those that have a replica; none: it has no replicas
}

// Index is a global secondary index, with all attributes projected.
type Index struct {
	Name         string    `json:"name"`
	PartitionKey Attribute `json:"partition_key"`
	SortKey      Attribute `json:"sort_key"`
}

// Attribute is a key's attribute.
type Attribute struct {
	Name string `json:"name"`
	Type string `json:"type"` // S, N or B
}

// TTL is the attribute by which rows expire, in every table where they do.
const TTL = "expires_at_unix_s"

// Regions that MRGC runs in, by AWS's names: one of the sets that DynamoDB offers
// strong consistency for.
func Regions() []string { return []string{"us-east-1", "us-east-2", "us-west-2"} }

var regions = Regions()

// The tables, by the names that they have where no prefix was chosen.
var (
	// GPUInstances is written by each instance's parent, in its own region.
	GPUInstances = Table{
		Name:         "gpu_instances",
		Purpose:      "the fleet: one row for each instance, by its parent",
		PartitionKey: text("instance_id"),
		TTLAttribute: TTL, Stream: true, Consistency: Eventual, Regions: regions,
	}
	// RoutingState is written by the leading controllers, and holds their leases.
	RoutingState = Table{
		Name:         "routing_state",
		Purpose:      "leases, each region's failover state, and what each sees of all: by the controllers that hold a lease",
		PartitionKey: text("id"),
		Consistency:  Strong, Regions: regions,
	}
	// AutoscalingState is written by each region's leading controller, and by
	// people who set a capacity by hand.
	AutoscalingState = Table{
		Name:         "autoscaling_state",
		Purpose:      "each region's capacity: by its leading controller and by hand",
		PartitionKey: text("region"),
		Consistency:  Strong, Regions: regions,
	}
	// CleanupValidation is written by each instance's parent, a row for each wash.
	CleanupValidation = Table{
		Name:         "cleanup_validation",
		Purpose:      "every full wash of an instance: by its parent",
		PartitionKey: text("instance_id"),
		SortKey:      sorted("wash_id"),
		Indexes:      []Index{{Name: "by_region", PartitionKey: text("region"), SortKey: text("wash_id")}},
		TTLAttribute: TTL, Stream: true, Consistency: Eventual, Regions: regions,
	}
	// Metrics is written by each region's leading controller: a heartbeat that is
	// written over, and a row for each minute.
	Metrics = Table{
		Name:         "metrics",
		Purpose:      "each region's heartbeat and its load by the minute: by its leading controller",
		PartitionKey: text("series"),
		SortKey:      sorted("at"),
		TTLAttribute: TTL, Stream: true, Consistency: Eventual, Regions: regions,
	}
	// FleetKeys is written by enclaves alone, for recipients of type fleet
	// (internal/fleetkey). Its keys are those of one region, and so is what was run
	// by them.
	FleetKeys = Table{
		Name:         "fleet_keys",
		Purpose:      "a fleet's seeds, encrypted, and which requests were run by their keys: by the region's enclaves",
		PartitionKey: text("id"),
		TTLAttribute: TTL, Consistency: Regional,
	}
)

// Tables are those that hold the cluster's state, under names that begin with
// prefix.
func Tables(prefix string) []Table {
	return named(prefix, GPUInstances, RoutingState, AutoscalingState, CleanupValidation, Metrics)
}

// All are these, and the one that enclaves share.
func All(prefix string) []Table { return append(Tables(prefix), named(prefix, FleetKeys)...) }

func named(prefix string, all ...Table) []Table {
	for i := range all {
		all[i].Name = prefix + all[i].Name
	}
	return all
}

func text(name string) Attribute { return Attribute{Name: name, Type: "S"} }

func sorted(name string) *Attribute {
	a := text(name)
	return &a
}

// Difference is something about a table that is not as it should be.
type Difference struct {
	What string `json:"what"` // "ttl_attribute"
	Got  string `json:"got"`
	Want string `json:"want"`
	// Todo says what a person does about it; empty for what `mrgc state init`
	// puts right by itself.
	Todo string `json:"todo,omitempty"`
}

func (d Difference) String() string {
	s := fmt.Sprintf("%s is %s, want %s", d.What, orNone(d.Got), orNone(d.Want))
	if d.Todo != "" {
		s += ": " + d.Todo
	}
	return s
}

// Compare says how a table that exists differs from what is wanted. More than is
// wanted is no difference where it does no harm: further indexes, replicas, a
// stream.
func Compare(want, got Table) []Difference {
	var all []Difference
	differ := func(what, got, want, todo string) {
		if got != want {
			all = append(all, Difference{What: what, Got: got, Want: want, Todo: todo})
		}
	}
	differ("key", got.key(), want.key(),
		"a table's key cannot be changed: choose another prefix, or move the table's rows away and delete it")
	for _, index := range want.Indexes {
		i := slices.IndexFunc(got.Indexes, func(other Index) bool { return other.Name == index.Name })
		if i < 0 {
			differ("index "+index.Name, "", index.key(), "")
			continue
		}
		differ("index "+index.Name, got.Indexes[i].key(), index.key(), "delete the index, and run this again")
	}
	differ("ttl_attribute", got.TTLAttribute, want.TTLAttribute, ttlTodo(want, got))
	if want.Stream && !got.Stream {
		differ("stream", "", "NEW_AND_OLD_IMAGES", "")
	}
	return append(all, compareReplicas(want, got)...)
}

// compareReplicas knows that a table without replicas is not yet of either
// consistency.
func compareReplicas(want, got Table) []Difference {
	if want.Consistency == Regional {
		if len(got.Regions) > 1 {
			return []Difference{{
				What: "regions", Got: strings.Join(got.Regions, " "),
				Todo: "remove the replicas: each region has a table of its own",
			}}
		}
		return nil
	}
	if len(got.Regions) > 1 && len(want.Regions) > 1 && got.Consistency != want.Consistency {
		return []Difference{{
			What: "consistency", Got: string(got.Consistency), Want: string(want.Consistency),
			Todo: "it cannot be changed: choose another prefix, or delete the table and run this again",
		}}
	}
	missing := want.MissingIn(got)
	if len(missing) == 0 {
		return nil
	}
	difference := Difference{What: "regions", Got: strings.Join(got.Regions, " "), Want: strings.Join(want.Regions, " ")}
	if want.Consistency == Strong && len(got.Regions) > 1 {
		difference.Todo = "a strongly consistent table gets its replicas all at once: delete the table and run this again"
	}
	return []Difference{difference}
}

// MissingIn lists the regions in which got has no replica.
func (t Table) MissingIn(got Table) []string {
	var missing []string
	for _, region := range t.Regions {
		if !slices.Contains(got.Regions, region) {
			missing = append(missing, region)
		}
	}
	return missing
}

func ttlTodo(want, got Table) string {
	switch {
	case got.TTLAttribute == "":
		return ""
	case want.TTLAttribute == "":
		return "disable it: rows of this table must not expire"
	default:
		return "disable it, wait until DynamoDB has done so (up to an hour), and run this again"
	}
}

func (t Table) key() string {
	if t.SortKey == nil {
		return t.PartitionKey.String()
	}
	return t.PartitionKey.String() + ", " + t.SortKey.String()
}

func (i Index) key() string { return i.PartitionKey.String() + ", " + i.SortKey.String() }

func (a Attribute) String() string { return a.Name + " (" + a.Type + ")" }

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
