package quota

// Held is of how many tenants a limiter keeps something.
func (l *Limiter) Held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := max(len(l.debts), len(l.own.byTenant), l.own.order.Len(), len(l.heard))
	for _, h := range l.heard {
		held = max(held, len(h.uses))
	}
	return held
}
