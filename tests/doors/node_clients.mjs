// Revokes and introspects as panva's clients do. Arguments: URL of the service, client id, key, token. Prints JSON lines.
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'

const [url, id, secret, raw] = process.argv.slice(2)
const server = {
  issuer: url,
  revocation_endpoint: `${url}/oauth2/revoke`,
  introspection_endpoint: `${url}/oauth2/introspect`,
}
const insecure = { [oauth.allowInsecureRequests]: true }

async function low(name, auth) {
  const client = { client_id: id }
  const ask = async () => {
    const response = await oauth.introspectionRequest(server, client, auth, raw, insecure)
    return (await oauth.processIntrospectionResponse(server, client, response)).active
  }
  console.log(JSON.stringify({ name, active: await ask() }))
}

await low('oauth4webapi basic', oauth.ClientSecretBasic(secret))
await low('oauth4webapi post', oauth.ClientSecretPost(secret))

const configuration = new openid.Configuration(server, id, {}, openid.ClientSecretBasic(secret))
openid.allowInsecureRequests(configuration)
console.log(JSON.stringify({ name: 'openid-client', active: (await openid.tokenIntrospection(configuration, raw)).active }))
await openid.tokenRevocation(configuration, raw)
console.log(JSON.stringify({ name: 'revoked', active: (await openid.tokenIntrospection(configuration, raw)).active }))
const response = await oauth.revocationRequest(server, { client_id: id }, oauth.ClientSecretBasic(secret), raw, insecure)
await oauth.processRevocationResponse(response)
