package globaltables

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/mrgc/mrgc/internal/state/schema"
)

// attributes are an item's, or its key's, as they are on the wire.
type attributes = map[string]json.RawMessage

// ref is an item's place.
type ref struct {
	table string
	key   string // its key's attributes as JSON, sorted by name
}

// refOf finds an item's key among its attributes.
func refOf(table schema.Table, item attributes) (ref, error) {
	key := attributes{}
	names := []string{table.PartitionKey.Name}
	if table.SortKey != nil {
		names = append(names, table.SortKey.Name)
	}
	for _, name := range names {
		value, is := item[name]
		if !is {
			return ref{}, fmt.Errorf("no key attribute %s", name)
		}
		key[name] = value
	}
	text, err := json.Marshal(key) // maps are sorted, and raw messages compacted
	return ref{table.Name, string(text)}, err
}

// wire is what of a request says which tables and items it is about.
type wire struct {
	TableName     string
	Item, Key     attributes
	RequestItems  map[string]json.RawMessage
	TransactItems []map[string]struct {
		TableName string
		Item, Key attributes
	}
	ReplicaUpdates []struct {
		Create *struct{ RegionName string }
	}
	MultiRegionConsistency string
}

// tables are those that a request names.
func (q *wire) tables() (names []string) {
	if q.TableName != "" {
		names = append(names, q.TableName)
	}
	for name := range q.RequestItems {
		names = append(names, name)
	}
	for _, one := range q.TransactItems {
		for _, action := range one {
			names = append(names, action.TableName)
		}
	}
	return names
}

// written are the items that a request may write, of tables that are replicated, and
// whether it removes them.
func (q *wire) written(operation string, tables map[string]schema.Table) (items map[ref]bool, err error) {
	items = map[ref]bool{}
	add := func(name string, item attributes, removes bool) {
		table, known := tables[name]
		if !known || table.Consistency != schema.Eventual {
			return
		}
		one, wrong := refOf(table, item)
		items[one], err = removes, errors.Join(err, wrong)
	}
	switch operation {
	case "PutItem":
		add(q.TableName, q.Item, false)
	case "UpdateItem", "DeleteItem":
		add(q.TableName, q.Key, operation == "DeleteItem")
	case "BatchWriteItem":
		for name, text := range q.RequestItems {
			var all []struct {
				PutRequest    struct{ Item attributes }
				DeleteRequest struct{ Key attributes }
			}
			if err := json.Unmarshal(text, &all); err != nil {
				return nil, err
			}
			for _, one := range all {
				if one.PutRequest.Item != nil {
					add(name, one.PutRequest.Item, false)
				} else {
					add(name, one.DeleteRequest.Key, true)
				}
			}
		}
	case "TransactWriteItems":
		for _, one := range q.TransactItems {
			for kind, action := range one {
				switch {
				case kind == "Put":
					add(action.TableName, action.Item, false)
				case kind != "ConditionCheck":
					add(action.TableName, action.Key, kind == "Delete")
				}
			}
		}
	}
	return items, err
}

// serveDynamoDB answers the SDK.
func (r *Region) serveDynamoDB(w http.ResponseWriter, req *http.Request, body []byte) {
	target := req.Header.Get("X-Amz-Target")
	if scope := "/" + r.cfg.Region + "/dynamodb/"; !strings.Contains(req.Header.Get("Authorization"), scope) {
		fail(w, http.StatusBadRequest, "InvalidSignatureException", "the request is not signed for "+scope+", but this is that region's endpoint")
		return
	}
	if !r.health.near() {
		unavailable(w, errors.New("this region's DynamoDB Local is gone"))
		return
	}
	operation, is := strings.CutPrefix(target, dynamoDB)
	if !is {
		r.forward(w, req, r.near, target, body)
		return
	}
	if strings.Contains(operation, "Statement") || operation == "ExecuteTransaction" {
		refuse(w, errors.New("PartiQL is not to be had in this stand-in"))
		return
	}
	var asked wire
	if err := json.Unmarshal(body, &asked); err != nil {
		refuse(w, err)
		return
	}
	names := asked.tables()
	isStrong := func(name string) bool { return r.tables[name].Consistency == schema.Strong }
	strong := slices.ContainsFunc(names, isStrong)
	if strong && slices.ContainsFunc(names, func(name string) bool { return !isStrong(name) }) {
		refuse(w, errors.New("one request is about tables that are strongly consistent and others"))
		return
	}
	database := r.near
	if strong {
		if database = r.strong; !r.health.majority() {
			unavailable(w, fmt.Errorf("%s hears of no majority of the regions: strongly consistent tables can be neither read nor written", r.cfg.Region))
			return
		}
	}
	switch {
	case operation == "DescribeTable":
		r.describeTable(w, req, database, asked.TableName)
	case operation == "UpdateTable" && len(asked.ReplicaUpdates) > 0:
		r.addReplicas(w, req, database, &asked)
	case strong:
		r.forward(w, req, database, target, body)
	default:
		written, err := asked.written(operation, r.tables)
		if err != nil {
			refuse(w, err)
			return
		}
		if len(written) == 0 {
			r.forward(w, req, database, target, body)
			return
		}
		r.write(w, req, written, target, body)
	}
}

func (r *Region) forward(w http.ResponseWriter, req *http.Request, to *database, target string, body []byte) {
	a, err := to.ask(req.Context(), target, body)
	if err != nil {
		unavailable(w, err)
		return
	}
	a.write(w)
}

// write has items written, each with a new version of this region. The version is kept
// first: when this process ends in between, what may have been written is sent to the
// others, and what was not is sent as it is.
func (r *Region) write(w http.ResponseWriter, req *http.Request, written map[ref]bool, target string, body []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.journal.tick()
	before := map[ref]version{}
	for one, removes := range written {
		before[one] = r.journal.of(one)
		next := version{At: at, Region: r.cfg.Region, Deleted: removes}
		if err := r.journal.set(one, next); err != nil {
			unavailable(w, err)
			return
		}
	}
	a, err := r.near.ask(req.Context(), target, body)
	if err != nil {
		unavailable(w, err)
		return
	}
	if a.status >= 400 && a.status < 500 { // it was refused, and nothing written
		for one, was := range before {
			if err := r.journal.set(one, was); err != nil {
				unavailable(w, err)
				return
			}
		}
	}
	a.write(w)
}
